#!/usr/bin/env bash
# Prints the first Python of this machine that is new enough (3.11) and can make virtual environments; fails if there is none.
set -euo pipefail

for python in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
  if "$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    command -v "$python"
    exit 0
  fi
done
echo "no Python of at least 3.11 with venv; on Debian or Ubuntu: apt-get install python3 python3-venv" >&2
exit 3
