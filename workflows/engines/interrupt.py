"""How a step that runs on a thread is told to stop, and when it listens.

A step listens when it reports progress. One that computes in Python is stopped all the same: the interpreter raises the
exception in its thread at the next instruction (`PyThreadState_SetAsyncExc`). One that waits in the kernel stops when the wait
ends; the engine does not wait for it beyond its grace.
"""

import threading
from types import TracebackType

from tasks.skoop.errors import KubeprobeError


class StepStopped(BaseException):  # no error: a request, which `except Exception` in a step must not swallow
    """The step is to end now: its run was cancelled, or its time is over."""


class Attempt:
    """One attempt at a step on one thread: entered by that thread, stopped by any other, at most once."""

    def __init__(self) -> None:
        self.reason: KubeprobeError | None = None
        self._thread: int | None = None
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise StepStopped if the attempt was stopped."""
        if self.reason is not None:
            raise StepStopped

    def stop(self, reason: KubeprobeError) -> None:
        """Make the attempt end with that reason, if it has not ended or been stopped already."""
        with self._lock:
            if self.reason is None:
                self.reason = reason
                if self._thread is not None:
                    _raise_in(self._thread, StepStopped)

    def __enter__(self) -> "Attempt":
        with self._lock:
            self.check()
            self._thread = threading.get_ident()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The exception may still arrive in here; once it has, or has been taken back under the lock, no other comes.
        while self._thread is not None:
            try:
                with self._lock:
                    if self.reason is not None:
                        _raise_in(threading.get_ident(), None)
                    self._thread = None
            except StepStopped:
                continue


def _raise_in(thread: int, exception: type[BaseException] | None) -> None:
    """Have an exception raised in a thread at its next instruction, or (None) take back one that has not been raised yet."""
    import ctypes  # only runs that are stopped need it

    target = ctypes.py_object(exception) if exception is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), target)
