"""Tries of a lab under the oracle's eyes: silence is known at once, and every try has its story afterwards.

`attempt_all(…, early=Watching(oracle))` is the whole of it: a try whose packet the kernel has thrown away, and for which nothing
else is on its way, is given up without waiting for a timeout (class Early of lab/prober.py).
"""

from collections.abc import Collection, Sequence

from lab.prober import Attempt
from tests.kernel.oracle.events import Event
from tests.kernel.oracle.oracle import Oracle
from tests.kernel.oracle.paths import Sorter, Story


class Watching:
    """What the oracle sees of one batch of tries. Made anew for each batch; what happened before is forgotten."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._sorter = Sorter()
        self._base = 0
        self._count = 0
        self.events: list[Event] = []
        oracle.forget()

    @property
    def fd(self) -> int:
        """Readable when a packet has been dropped."""
        return self._oracle.fd

    def begin(self, attempts: Sequence[Attempt]) -> None:
        """Look at these tries from now on (after those of an earlier call)."""
        self._base += self._count
        self._count = len(attempts)
        for number, attempt in enumerate(attempts, self._base):
            self._sorter.expect(number, attempt)

    def hopeless(self) -> Collection[int]:
        """Return the positions of tries of the last `begin` that will hear nothing more."""
        self._take()
        sorter, base = self._sorter, self._base
        return [
            number
            for number in range(self._count)
            if sorter.is_silent(base + number) or sorter.is_stalled(base + number)
        ]

    def stories(self) -> list[Story]:
        """Return what became of every try, in order."""
        self._take()
        return [self._sorter.story(number) for number in range(self._base + self._count)]

    def _take(self) -> None:
        fresh = self._oracle.drain()
        self.events += fresh
        self._sorter.add(fresh)
