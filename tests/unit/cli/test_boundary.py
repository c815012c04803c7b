"""Every way to fail ends as a message and an exit status, never as a traceback."""

import errno
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kubectl_probe.commands.version as version_command
from kubectl_probe.exits import ExitStatus
from kubectl_probe.main import main
from kubectl_probe.output import Format, asked_for
from tests.architecture.tree import ROOT
from tests.unit.cli.command import finish, is_clean, run, start

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("words", "format_"),
    [
        pytest.param([], Format.TEXT, id="nothing"),
        pytest.param(["diagnose", "-o", "json"], Format.JSON, id="two words"),
        pytest.param(["diagnose", "-ojson"], Format.JSON, id="one word"),
        pytest.param(["--output=json", "x"], Format.JSON, id="long"),
        pytest.param(["collect", "-o", "json.kps"], Format.TEXT, id="a file"),
        pytest.param(["x", "-o"], Format.TEXT, id="cut off"),
    ],
)
def test_the_format_is_known_before_the_line_is_parsed(words: list[str], format_: Format) -> None:
    assert asked_for(words) is format_


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(["diagnoze"], "No such command", id="command"),
        pytest.param(["diagnose", "--form", "x"], "No such option", id="option"),
        pytest.param(["diagnose", "--dport", "70000"], "65535", id="port out of range"),
        pytest.param(["diagnose", "--protocol", "carrier-pigeon"], "carrier-pigeon", id="protocol"),
        pytest.param(["diagnose", "--from", "a", "--to", "b"], "--topology", id="no source"),
        pytest.param(
            ["diagnose", "--dumps", "/", "--snapshot", "/", "--from", "a", "--to", "b"], "two sources", id="two sources"
        ),
        pytest.param(["diagnose", "--dumps", "/nowhere", "--from", "a", "--to", "b"], "/nowhere", id="no such folder"),
        pytest.param(["diagnose", "--dumps", "/", "--to", "b"], "--from", id="nobody asks"),
        pytest.param(["diagnose", "--dumps", "/", "--from", "b", "--pairs", "x"], "--pairs", id="pairs and a question"),
        pytest.param(["collect"], "--topology", id="collect from nowhere"),
        pytest.param(["collect", "--host", "--dumps", "/"], "two sources", id="collect from two"),
        pytest.param(["snapshot"], "Usage", id="half a command"),
        pytest.param([], "Usage", id="no command"),
        pytest.param(
            ["submit", "diagnose", "--dumps", "/", "--from", "a", "--to", "b"], "--wait", id="submit and leave"
        ),
    ],
)
def test_a_wrong_command_is_told_and_exits_with_2(capfd: Capture, words: list[str], says: str) -> None:
    done = run(capfd, *words)
    assert done.status == ExitStatus.WRONG_COMMAND
    assert says in done.err
    assert is_clean(done)
    assert done.out == ""


def test_an_error_is_one_json_object_where_json_was_asked_for(capfd: Capture) -> None:
    done = run(capfd, "snapshot", "show", "/nowhere.kps", "-o", "json")
    error = json.loads(done.err)["error"]
    assert error["type"] == "NotASnapshot"
    assert error["exit_status"] == done.status == ExitStatus.WRONG_COMMAND
    assert "/nowhere.kps" in error["message"]
    assert done.out == ""


def explode(_output: Format) -> str:
    raise ZeroDivisionError("the sky fell")


def test_a_bug_is_called_a_bug(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version_command, "version_text", explode)
    done = run(capfd, "version", "--output=text")
    assert done.status == ExitStatus.NOT_DONE
    assert "this is a bug in kubectl-probe" in done.err
    assert "ZeroDivisionError: the sky fell" in done.err
    assert is_clean(done)


@pytest.mark.parametrize("way", ["option", "environment"])
def test_a_traceback_is_shown_when_asked_for(capfd: Capture, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(version_command, "version_text", explode)
    if way == "environment":
        monkeypatch.setenv("KUBEPROBE_DEBUG", "1")
    done = run(capfd, *(["--debug"] if way == "option" else []), "version", "--output=text")
    assert "Traceback" in done.err
    assert done.status == ExitStatus.NOT_DONE


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        pytest.param(
            OSError(errno.ENOSPC, "No space left on device", "/full/x"), 3, "/full/x: No space left", id="full disk"
        ),
        pytest.param(
            PermissionError(errno.EACCES, "Permission denied", "/secret"),
            3,
            "/secret: Permission denied",
            id="permission",
        ),
        pytest.param(KeyboardInterrupt(), 130, "interrupted", id="interrupted"),
    ],
)
def test_what_the_world_does_is_told(
    capfd: Capture, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, says: str
) -> None:
    def fail(_output: Format) -> str:
        raise error

    monkeypatch.setattr(version_command, "version_text", fail)
    done = run(capfd, "version", "--output=text")
    assert done.status == status
    assert says in done.err
    assert is_clean(done)


def test_nobody_reading_is_no_error_worth_a_word() -> None:
    process = start("--help")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == ExitStatus.BROKEN_PIPE
    assert err == b""


def test_a_full_device_is_told() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kubectl_probe", "version"],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            timeout=60,
            check=False,
        )
    assert done.returncode == ExitStatus.NOT_DONE
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_version_starts_quickly() -> None:
    took = []
    for _ in range(3):
        begun = time.monotonic()
        done = finish(start("version"))
        took.append(time.monotonic() - begun)
        assert done.status == 0
        assert done.out.startswith("kubectl-probe ")
    assert min(took) < 0.3


def test_version_forms_agree(capfd: Capture) -> None:
    assert run(capfd, "version").out == run(capfd, "version", "--output=text").out == run(capfd, "--version").out
    assert json.loads(run(capfd, "version", "-o", "json").out) == json.loads(run(capfd, "version", "-ojson").out)


HELP = [
    (),
    ("diagnose",),
    ("collect",),
    ("demo",),
    ("snapshot", "show"),
    ("snapshot", "diff"),
    ("submit", "diagnose"),
    ("version",),
]


@pytest.mark.parametrize("words", HELP, ids=lambda words: " ".join(words) or "all")
def test_help_is_no_error(capfd: Capture, words: tuple[str, ...]) -> None:
    done = run(capfd, *words, "--help")
    assert done.status == 0
    assert "Usage: kubectl-probe" in done.out
    assert done.err == ""


def test_help_names_examples_on_lines_of_their_own(capfd: Capture) -> None:
    assert (
        "\n    kubectl-probe diagnose --dumps ./dumps --from shop/client --to svc/shop/web:80\n"
        in run(capfd, "diagnose", "-h").out
    )


def test_main_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    main(["version"])
    assert signal.getsignal(signal.SIGINT) is before
