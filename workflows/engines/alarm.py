"""Calls at a later time, on one thread that exists only while there is something to wait for: time limits, pauses, grace."""

import heapq
import threading
from collections.abc import Callable
from itertools import count
from time import monotonic


class Alarm:
    """Calls functions after a delay. They must be short and must not raise."""

    def __init__(self) -> None:
        self._calls: list[tuple[float, int]] = []
        self._functions: dict[int, Callable[[], None]] = {}
        self._numbers = count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def after(self, delay_s: float, function: Callable[[], None]) -> int:
        """Call the function in that many seconds; return a number by which `cancel` knows it."""
        with self._changed:
            number = next(self._numbers)
            if self._closed:
                return number
            self._functions[number] = function
            heapq.heappush(self._calls, (monotonic() + delay_s, number))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="kubeprobe-alarm", daemon=True)
                self._thread.start()
            elif self._calls[0][1] == number:
                self._changed.notify()
            return number

    def cancel(self, number: int) -> None:
        """Do not make that call, if it has not been made."""
        with self._changed:
            self._functions.pop(number, None)

    def close(self) -> None:
        """Make no further calls; one that is being made ends first."""
        with self._changed:
            self._closed = True
            self._functions.clear()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while (function := self._next()) is not None:
            function()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._closed:
                while self._calls and self._calls[0][1] not in self._functions:
                    heapq.heappop(self._calls)
                wait_s = self._calls[0][0] - monotonic() if self._calls else None
                if wait_s is not None and wait_s <= 0:
                    return self._functions.pop(heapq.heappop(self._calls)[1])
                self._changed.wait(wait_s)
            return None
