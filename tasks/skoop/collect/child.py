"""The collecting process: takes requests on its standard input, answers on its standard output (`messages`).

Started as `python -m tasks.skoop.collect.child [PID]`; with a PID it first enters that process's user namespace. It has one
thread, and forks for each namespace: the fork enters it, collects and ends, so that nothing of one namespace (sockets,
event loops, memory) is left when the next begins.
"""

import gc
import os
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

from tasks.skoop.collect.enter import OWN_NETNS, enter_netns, enter_user_namespace
from tasks.skoop.collect.messages import Answer, Hello, Request, read_message, write_message
from tasks.skoop.collect.namespace import collect_namespace, processes_by_netns
from tasks.skoop.collect.tools import tool_versions


def main(argv: list[str]) -> int:
    """Serve until the input ends; return the exit status."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    try:
        if argv:
            enter_user_namespace(int(argv[0]))
    except (OSError, ValueError) as error:
        write_message(answers, Hello(error=f"cannot enter the user namespace of process {argv[0]}: {error}"))
        return 1
    write_message(answers, Hello(tools=tool_versions()))
    processes = processes_by_netns()
    while (data := read_message(requests)) is not None:
        request = msgspec.msgpack.decode(data, type=Request)
        write_message(answers, _forked(request, processes))
    return 0


def _forked(request: Request, processes: dict[int, list[int]]) -> msgspec.Raw:
    """Return the encoded answer that a fork of this process gives."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as pipe:
                _work(request, processes, pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    _, waited = os.waitpid(pid, 0)
    if os.WIFSIGNALED(waited) or not data:
        end = (
            f"signal {os.WTERMSIG(waited)}" if os.WIFSIGNALED(waited) else f"status {os.waitstatus_to_exitcode(waited)}"
        )
        data = msgspec.msgpack.encode(Answer(id=request.place.id, error=f"the collecting process ended with {end}"))
    return msgspec.Raw(data)


def _work(request: Request, processes: dict[int, list[int]], pipe: BinaryIO) -> None:
    try:
        enter_netns(Path(request.place.path))
    except OSError as error:
        reason = f"cannot enter {request.place.path}: {error.strerror or error}"
        pipe.write(msgspec.msgpack.encode(Answer(id=request.place.id, error=reason)))
        return
    gc.disable()  # this process ends before there is anything worth collecting
    netns = collect_namespace(request, processes.get(OWN_NETNS.stat().st_ino, ()))
    pipe.write(msgspec.msgpack.encode(Answer(id=request.place.id, netns=netns)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
