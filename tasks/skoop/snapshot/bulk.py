"""How many values are made at once without paying for the cycle collector: process-wide, nestable, for any thread."""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Hold:
    """Who holds the collector off, and whether it was on before the first of them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holders = 0
        self.was_on = False


_hold = _Hold()


@contextmanager
def without_gc() -> Iterator[None]:
    """Run a bulk decode with the cycle collector off, and exempt what it made from later collections.

    Decoding 150,000 rules makes millions of objects that hold no cycles; the collector would walk them again and again
    (eight times the decode's own cost, measured) and find nothing. They are still freed when nothing refers to them.
    """
    with _hold.lock:
        if _hold.holders == 0:
            _hold.was_on = gc.isenabled()
            gc.disable()
        _hold.holders += 1
    try:
        yield
    finally:
        with _hold.lock:
            _hold.holders -= 1
            if _hold.holders == 0 and _hold.was_on:
                gc.freeze()
                gc.enable()
