"""The tree of a run that moves on a terminal."""

import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.architecture.tree import ROOT


def read_all(descriptor: int) -> str:
    """Read a terminal until its other side is closed (which Linux tells as an error)."""
    parts: list[bytes] = []
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError:
            part = b""
        if not part:
            return b"".join(parts).decode()
        parts.append(part)


def on_terminal(*words: str | Path, **environment: str) -> tuple[str, bytes, int]:
    """Run a command line with standard error on a terminal; return what it shows, standard output and the status."""
    ours, theirs = pty.openpty()
    with tempfile.TemporaryFile() as out, os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [sys.executable, "-m", "kubectl_probe", *map(str, words)],
            cwd=ROOT, env={**os.environ, "TERM": "xterm", "COLUMNS": "100", **environment},
            stdin=subprocess.DEVNULL, stdout=out, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        shown = read_all(terminal.fileno())
        status = process.wait(60)
        out.seek(0)
        return shown, out.read(), status


def test_the_tree_grows_to_the_end(snapshot: Path) -> None:
    question = ("--snapshot", snapshot, "--from", "shop/client-74cdc48d-9nk66", "--to", "svc/shop/web:80", "-o", "json")
    shown, out, status = on_terminal("submit", "diagnose", "--wait", *question)
    assert status == 1
    last = shown.rpartition("diagnose  100 %")[2]
    for step in ("resolve", "collect", "assemble", "simulate-plugin  3/3", "assert-infra", "report"):
        assert step in last, step
    assert "✗" not in last
    assert out.startswith(b'{"schema_version":')
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, (
        "the cursor is hidden while it moves, and shown again"
    )


def test_a_failure_is_shown_in_the_tree(snapshot: Path) -> None:
    shown, _, status = on_terminal(
        "submit", "diagnose", "--wait", "--snapshot", snapshot, "--from", "nobody/x", "--to", "node/n1"
    )
    assert status == 2
    assert "✗ " in shown
    assert "nobody/x" in shown
    assert "Traceback" not in shown


def test_no_tree_where_colours_are_not_wanted(snapshot: Path) -> None:
    question = ("--snapshot", snapshot, "--from", "shop/client-74cdc48d-9nk66", "--to", "svc/shop/web:80")
    shown, _, _ = on_terminal("submit", "diagnose", "--wait", *question, NO_COLOR="1")
    assert "\x1b" not in shown
    assert "✓ report done" in shown
