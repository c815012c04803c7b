"""The one place where a command line becomes an exit status, and every way to fail becomes a message.

An error of the request or of the world is told in words with what to do next; a bug is called a bug. A traceback is shown only
when asked for (`--debug`, or KUBEPROBE_DEBUG in the environment).
"""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from kubectl_probe.exits import ExitStatus
from kubectl_probe.output import Format, asked_for, note, say
from kubectl_probe.versions import answer

PROGRAM = "kubectl-probe"
_INTERRUPTED = "interrupted; nothing was left behind half-done"
_PATIENCE_S = 8.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process') and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _guarded(words)
    finally:
        # Whatever is still buffered goes nowhere if nobody reads it; the interpreter must not complain about that at its end.
        _close_quietly()


def _guarded(words: list[str]) -> int:
    output = asked_for(words)
    try:
        with _ending_soon_when_interrupted(output):
            status = _run(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _tell(output, "Interrupted", _INTERRUPTED, ExitStatus.INTERRUPTED)
        return ExitStatus.INTERRUPTED
    except BrokenPipeError:
        return ExitStatus.BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 (the boundary: every failure ends as a message and a status)
        return _told_failure(output, error, words)
    return status


@contextlib.contextmanager
def _ending_soon_when_interrupted(output: Format) -> Iterator[None]:
    """See to it that Ctrl-C ends the program within a few seconds, even where a thread that was stopped holds a lock."""
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # a guest in another program, or somebody ignores the signal
        return

    def give_up() -> None:
        _tell(output, "Interrupted", _INTERRUPTED, ExitStatus.INTERRUPTED)
        os._exit(ExitStatus.INTERRUPTED)

    def interrupted(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        patience = threading.Timer(_PATIENCE_S, give_up)
        patience.daemon = True
        patience.start()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(words: list[str]) -> int:
    version = answer(words)
    if version is not None:
        say(version)
        return ExitStatus.NOTHING_WRONG
    import typer

    from kubectl_probe.app import app

    command = typer.main.get_command(app)
    try:
        with command.make_context(PROGRAM, list(words)) as context:
            result = command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    return result if isinstance(result, int) else ExitStatus.NOTHING_WRONG


def _told_failure(output: Format, error: Exception, words: list[str]) -> int:
    """Tell about an exception and return the exit status that goes with it."""
    if _debugging(words):
        import traceback

        traceback.print_exception(error)
    for failure in (_usage_failure, _expected_failure, _system_failure):
        told = failure(error)
        if told is not None:
            message, status = told
            _tell(output, type(error).__name__, message, status)
            return status
    message = (
        f"this is a bug in {PROGRAM}, not in your cluster: {type(error).__name__}: {error}\n"
        "Run it again with KUBEPROBE_DEBUG=1 in the environment, and report what it prints then."
    )
    _tell(output, "Bug", message, ExitStatus.NOT_DONE)
    return ExitStatus.NOT_DONE


def _usage_failure(error: Exception) -> tuple[str, int] | None:
    import typer

    if not isinstance(error, typer.TyperException):
        return None
    format_message: Callable[[], str] = getattr(error, "format_message", lambda: str(error))
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else PROGRAM
    message = format_message().rstrip()
    if type(error).__name__ == "NoArgsIsHelpError":
        return f"this command needs more words\n\n{message}", ExitStatus.WRONG_COMMAND
    return f"{message or 'this command line cannot be understood'}\nSee '{path} --help'.", ExitStatus.WRONG_COMMAND


def _expected_failure(error: Exception) -> tuple[str, int] | None:
    from tasks.skoop.errors import KubeprobeError

    return (str(error), error.exit_status) if isinstance(error, KubeprobeError) else None


def _system_failure(error: Exception) -> tuple[str, int] | None:
    if not isinstance(error, OSError) or error.errno is None:
        return None
    what = error.strerror or os.strerror(error.errno)
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"the system said no: {where}{what}", ExitStatus.NOT_DONE


def _tell(output: Format, kind: str, message: str, status: int) -> None:
    """Write an error to standard error, as text or as one JSON object."""
    try:
        if output is Format.JSON:
            note(
                json.dumps(
                    {"error": {"type": kind, "message": message, "exit_status": int(status)}}, ensure_ascii=False
                )
            )
        else:
            note(f"{PROGRAM}: {message}")
    except OSError:
        # Nobody can be told; the exit status still says it.
        return


def _debugging(words: list[str]) -> bool:
    return "--debug" in words or os.environ.get("KUBEPROBE_DEBUG", "") not in ("", "0")


def _close_quietly() -> None:
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except (OSError, ValueError):
            try:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)
            except OSError:
                return
