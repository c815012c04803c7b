"""Collecting processes, from their parent's side: started on demand, shared by threads, replaced when they fail or hang."""

import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from tasks.skoop.collect.messages import MESSAGE_BYTES, Answer, Hello, Place, Request
from tasks.skoop.collect.protocol import Report
from tasks.skoop.errors import KubeprobeError
from tasks.skoop.model.cluster import NodeNetworkStackDump
from tasks.skoop.model.ids import NodeName
from tasks.skoop.snapshot.bulk import without_gc

TIMEOUT_S = 120.0
START_TIMEOUT_S = 60.0
_ROOT = Path(__file__).resolve().parents[3]
_Message = TypeVar("_Message")
Command = Callable[[int | None], Sequence[str]]


class WorkerFailed(KubeprobeError):
    """A collecting process could not start, hung or died."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"the collecting process {what}")


def child_command(enter_pid: int | None) -> Sequence[str]:
    """Return how a collecting process is started; it enters the user namespace of `enter_pid` if that is given."""
    return [sys.executable, "-P", "-m", "tasks.skoop.collect.child", *([] if enter_pid is None else [str(enter_pid)])]


class Worker:
    """One collecting process. For one thread at a time."""

    def __init__(self, enter_pid: int | None, *, timeout_s: float, command: Command = child_command) -> None:
        """Start it and wait for its Hello. Raises WorkerFailed."""
        self._timeout_s = timeout_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 -- lives as long as the process
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            command(enter_pid),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": path},
            # Its own session: what it started (tools, forks) is ended with it.
            start_new_session=True,
        )
        try:
            hello = self._receive(Hello, START_TIMEOUT_S)
        except BaseException:
            self.close()
            raise
        if hello.error:
            self.close()
            raise WorkerFailed(f"could not start: {hello.error}")
        self.tools = hello.tools

    def collect(self, request: Request) -> Answer:
        """Return the answer to a request. Raises WorkerFailed, after which the worker is of no more use."""
        data = msgspec.msgpack.encode(request)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(len(data).to_bytes(4, "little") + data)
            self._process.stdin.flush()
        except OSError as error:
            raise WorkerFailed(f"has gone ({self._last_words() or error.strerror})") from error
        return self._receive(Answer, self._timeout_s)

    def close(self) -> None:
        """End the process and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(OSError):  # what was still to be sent has nobody to read it
                stream.close()
        self._process.wait()
        self._errors.close()

    def _receive(self, kind: type[_Message], timeout_s: float) -> _Message:
        deadline = time.monotonic() + timeout_s
        size = int.from_bytes(self._read(4, deadline, timeout_s), "little")
        if size > MESSAGE_BYTES:
            raise WorkerFailed("answered with something else than a message")
        data = self._read(size, deadline, timeout_s)
        try:
            with without_gc():
                return msgspec.msgpack.decode(data, type=kind)
        except msgspec.DecodeError as error:
            raise WorkerFailed(f"answered with something else than a message ({error})") from error

    def _read(self, size: int, deadline: float, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        data = bytearray()
        while len(data) < size:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise WorkerFailed(f"gave no answer within {timeout_s:g} s")
            part = os.read(descriptor, min(size - len(data), 1 << 20))
            if not part:
                raise WorkerFailed(f"has ended ({self._last_words() or 'it left no message'})")
            data += part
        return bytes(data)

    def _last_words(self) -> str:
        """Return the last line that the process wrote to its standard error."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""


class WorkerPool:
    """Up to `size` collecting processes for any number of threads."""

    def __init__(
        self, size: int, *, enter_pid: int | None = None, timeout_s: float = TIMEOUT_S, command: Command = child_command
    ) -> None:
        self.size = max(1, size)
        self.tools: dict[str, str] = {}
        self._enter_pid = enter_pid
        self._timeout_s = timeout_s
        self._command = command
        self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(self.size):
            self._idle.put(None)

    def collect(self, request: Request) -> Answer:
        """Return the state of a namespace, or why there is none; a worker that fails is replaced for the next."""
        worker = self._idle.get()
        try:
            if worker is None:
                worker = Worker(self._enter_pid, timeout_s=self._timeout_s, command=self._command)
                self.tools = worker.tools
            return worker.collect(request)
        except (WorkerFailed, OSError) as error:
            if worker is not None:
                worker.close()
                worker = None
            return Answer(id=request.place.id, error=str(error))
        except BaseException:
            if worker is not None:
                worker.close()
                worker = None
            raise
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End the processes. Nothing may be collecting any more."""
        for worker in [self._idle.get_nowait() for _ in range(self.size)]:
            if worker is not None:
                worker.close()
            self._idle.put(None)


def collect_places(
    pool: WorkerPool,
    node: NodeName,
    places: Sequence[Place],
    others: Callable[[Place], Sequence[Place]],
    report: Report,
) -> NodeNetworkStackDump:
    """Return the state of one machine's namespaces, collected in parallel as far as the pool has processes.

    `others` says where the far ends of a namespace's links may be, the likeliest first.
    """

    def collect(place: Place) -> Answer:
        answer = pool.collect(Request(place=place, others=tuple(others(place))))
        report(place.id, answer.error)
        return answer

    with ThreadPoolExecutor(max_workers=pool.size, thread_name_prefix="namespace") as threads:
        answers = list(threads.map(collect, places))
    return NodeNetworkStackDump(
        node=node,
        netns=tuple(answer.netns for answer in answers if answer.netns is not None),
        failed={answer.id: answer.error for answer in answers if answer.netns is None},
        tools=pool.tools,
    )
