#!/usr/bin/env bash
# Makes a virtual environment and brings it to one of the locks: `run` (what the program needs) or `dev` (that, tests, checks).
# Called by make, which knows when it is out of date. Only wheels are installed, each checked against its locked hash.
set -euo pipefail
cd "$(dirname "$0")/.."

venv="${1:?where}"
lock="requirements/${2:?run or dev}.lock"
[ -x "$venv/bin/python" ] || "$(scripts/find-python.sh)" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check --no-input -qq)

echo "installing the Python packages of $lock into $venv (once)"
"${pip[@]}" install --no-compile --require-hashes --only-binary :all: --no-deps -r "$lock"
# Compiled here rather than at every start, where the environment forbids Python to keep what it compiles. The largest
# packages, which few commands load, are left out: they would take twice as long as all others together.
"$venv/bin/python" -m compileall -q -j 2 -x '/(kubernetes|hera|flower|pygments|networkx|mypy|hypothesis|tests?)/' "$venv/lib" ||
  echo "some packages could not be compiled; that only makes them slower to start" >&2
# Hatchling is in the lock, so nothing is fetched here; the tree itself is what then runs.
"${pip[@]}" install --no-deps --no-build-isolation --editable .
