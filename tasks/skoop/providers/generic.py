"""A cluster of which nothing special is known: the plugin by its traces, the infrastructure by the nodes' addresses."""

from collections.abc import Callable, Mapping

from tasks.skoop.infra.generic import GenericInfra
from tasks.skoop.infra.protocol import InfraShim
from tasks.skoop.ipcache import IPCache
from tasks.skoop.plugins.flannel import Flannel
from tasks.skoop.plugins.flannel_config import read_flannel
from tasks.skoop.plugins.generic import Generic
from tasks.skoop.plugins.protocol import Plugin
from tasks.skoop.providers.protocol import Recognised


def _flannel(ipcache: IPCache) -> Plugin | None:
    configs = [config for family in (4, 6) if (config := read_flannel(ipcache.state, family)) is not None]
    return Flannel(ipcache, configs) if configs else None


PLUGINS: Mapping[str, Callable[[IPCache], Plugin | None]] = {"flannel": _flannel}
"""Plugins that can be recognised, in the order in which they are asked; who finds no trace of himself returns None."""


class GenericProvider:
    """The Provider that always fits."""

    name = "generic"

    def recognise(self, ipcache: IPCache) -> Recognised:
        """Return that this is some cluster, with what the nodes say of themselves."""
        nodes = ipcache.state.objects.nodes
        systems = sorted({node.os_image for node in nodes if node.os_image})
        reasons = [f"{len(nodes)} nodes" + (f" ({', '.join(systems[:3])})" if systems else "")]
        return Recognised(name=self.name, reasons=tuple(reasons))

    def plugin(self, ipcache: IPCache) -> Plugin:
        """Return the first plugin that finds its traces, else the generic one."""
        for find in PLUGINS.values():
            plugin = find(ipcache)
            if plugin is not None:
                return plugin
        return Generic(ipcache)

    def infra(self, ipcache: IPCache) -> InfraShim:
        """Return the generic infrastructure."""
        return GenericInfra(ipcache)
