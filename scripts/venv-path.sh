#!/usr/bin/env bash
# Prints where this user's virtual environment of the tree is, or is to be: .venv where that can be used or made, else (a tree of
# somebody else's, or whose .venv runs a Python that this user may not run) a folder of the user's own.
set -euo pipefail
cd "$(dirname "$0")/.."

runs() { [ -x "$1/bin/python" ] && "$1/bin/python" -c '' >/dev/null 2>&1; }
if runs .venv || { [ ! -e .venv ] && [ -w . ]; }; then
  echo .venv
  exit 0
fi
name="kubeprobe/venv-$(pwd | cksum | cut -d' ' -f1)"
for place in "${XDG_CACHE_HOME:-}" "${HOME:-}/.cache" "${TMPDIR:-/tmp}/kubeprobe-$(id -u)"; do
  case "$place" in "" | /.cache) continue ;; esac
  # Only a folder that nobody else could have put something into.
  if (umask 077 && mkdir -p "$place/$name") 2>/dev/null && [ -O "$place" ] && [ -w "$place/$name" ]; then
    echo "$place/$name"
    exit 0
  fi
done
echo "nowhere to put the Python packages: set XDG_CACHE_HOME to a folder that you can write" >&2
echo .venv
