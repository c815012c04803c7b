"""What thinks about one state in this process: its network, diagnostor and explainer, kept as long as they are asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from tasks.skoop.causes import Explainer
from tasks.skoop.context import Context
from tasks.skoop.diagnostor import Diagnostor
from tasks.skoop.jobs.sources import load_state
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.diagnosis import Diagnosis
from tasks.skoop.model.endpoint import Question
from tasks.skoop.model.suspicion import Suspicion
from tasks.skoop.network import Network

_WEIGHT_BYTES = 8 << 20
"""What a thinking counts for in the memory of a process: it grows as it is asked."""


class Judged(Network):
    """A network of which earlier steps have found what looks wrong."""

    def __init__(self, network: Network, suspicions: tuple[Suspicion, ...]) -> None:
        super().__init__(network.state)
        vars(self).update(vars(network))  # the parts that are made already
        self._suspicions = suspicions

    def concerning(self, question: Question) -> tuple[Suspicion, ...]:
        """Return what was found: the same for every question."""
        del question
        return self._suspicions


class Thinking:
    """A network and its diagnostor; both find things out as they are asked, and keep them."""

    def __init__(self, state: ClusterState) -> None:
        self.network = Network.build(state)
        self.diagnostor = Diagnostor(self.network)
        self.lock = Lock()
        self._explainer: tuple[object, Explainer] | None = None
        self._worlds: dict[int, tuple[ClusterState, Diagnostor]] = {}

    def explainer(self, key: object, suspicions: tuple[Suspicion, ...]) -> Explainer:
        """Return what explains answers by these suspicions; the last one, if the key is the same."""
        if self._explainer is None or self._explainer[0] != key:
            self._worlds.clear()
            self._explainer = key, Explainer(Judged(self.network, suspicions), self._ask)
        return self._explainer[1]

    def _ask(self, world: ClusterState, question: Question) -> Diagnosis:
        """Ask a question of a changed state; the explainer gives the same world for the same change."""
        known = self._worlds.get(id(world))
        if known is None:
            known = self._worlds[id(world)] = world, Diagnostor(Network.build(world))
        return known[1].diagnose(question)


@contextmanager
def thinking_of(digest: str, context: Context) -> Iterator[Thinking]:
    """Give what thinks about the state of that digest, for this thread alone.

    The interpreter runs one thread at a time anyway, and what one step finds out the next one uses.
    """
    key = ("thinking", digest)
    thinking = context.memory.recall(key, lambda: (Thinking(load_state(digest, context)), _WEIGHT_BYTES))
    with thinking.lock:
        yield thinking
