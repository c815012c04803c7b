"""What a Provider is asked: is this cluster yours, how do you know, and which parts describe its network?"""

from typing import Protocol as Interface

from msgspec import Struct

from tasks.skoop.infra.protocol import InfraShim
from tasks.skoop.ipcache import IPCache
from tasks.skoop.plugins.protocol import Plugin


class Recognised(Struct, frozen=True, kw_only=True):
    """A recognition: by what, in words for a report."""

    name: str
    reasons: tuple[str, ...]


class Provider(Interface):
    """An environment that clusters run in: a cloud, or none in particular."""

    name: str

    def recognise(self, ipcache: IPCache) -> Recognised | None:
        """Return how the environment shows, None if this is not it."""

    def plugin(self, ipcache: IPCache) -> Plugin:
        """Return the network plugin of the cluster."""

    def infra(self, ipcache: IPCache) -> InfraShim:
        """Return what lies between the nodes."""
