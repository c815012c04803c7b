"""Runs the command line: in this process (fast), or as a real process (pipes, signals, start-up)."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from kubectl_probe.main import main
from tests.architecture.tree import ROOT


class Done(NamedTuple):
    status: int
    out: str
    err: str


def run(capfd: pytest.CaptureFixture[str], *words: str | Path) -> Done:
    """Run one command line in this process."""
    capfd.readouterr()
    status = main([str(word) for word in words])
    out, err = capfd.readouterr()
    return Done(int(status), out, err)


def start(*words: str | Path, environment: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
    """Start a real process, its standard output and error as pipes."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "KUBEPROBE_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "kubectl_probe", *map(str, words)],
        cwd=ROOT,
        env={**clean, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: "subprocess.Popen[bytes]", timeout_s: float = 60) -> Done:
    out, err = process.communicate(timeout=timeout_s)
    return Done(process.returncode, out.decode(), err.decode())


def is_clean(done: Done) -> bool:
    """Say whether an error was told as one: in words, no traceback."""
    return "Traceback" not in done.err + done.out and bool(done.err.strip())
