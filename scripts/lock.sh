#!/usr/bin/env bash
# Writes requirements/run.lock (what `make demo` and users need) and requirements/dev.lock (run + tests and checks).
# Every version is pinned with its hashes, and no host is named: the machine that installs decides where it fetches from.
# Needs uv (in the dev group). Keeps the versions already locked unless called with --upgrade.
set -euo pipefail
cd "$(dirname "$0")/.."

uv="$(command -v uv || command -v .venv/bin/uv || true)"
[ -n "$uv" ] || { echo "lock: no uv; run 'make lock', which brings it" >&2; exit 2; }

lock() { # lock FILE GROUP [OPTION...]
  local file="$1" group="$2"
  shift 2
  "$uv" pip compile pyproject.toml --group "$group" --output-file "requirements/$file" --python-version 3.11 \
    --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet "$@"
  if grep -nE 'https?://|file:|--(extra-)?index|--find-links|--trusted-host| @ ' "requirements/$file"; then
    echo "lock: requirements/$file names a host; a lock must not" >&2
    exit 1
  fi
}

lock run.lock build "$@"
lock dev.lock dev --constraint requirements/run.lock "$@"
