"""Recorded clusters for unit tests, and small edits that break a healthy one in a known way."""

import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from msgspec.structs import replace

from tasks.skoop.collect.dumps import load_dumps
from tasks.skoop.model.addr import Ip
from tasks.skoop.model.cluster import ClusterState, PodMeta
from tasks.skoop.model.ids import NetnsId, NodeName
from tasks.skoop.model.state import Interface, NetNS
from tasks.skoop.model.suspicion import Change, DeleteRule, InsertRule
from tasks.skoop.remedy import apply
from tests.recorded.recordings import BROKEN, unpack

N1, N2, N3 = NetnsId("node/n1"), NetnsId("node/n2"), NetnsId("node/n3")


@lru_cache(maxsize=4)
def recorded(name: str) -> ClusterState:
    """Return a recorded cluster."""
    with tempfile.TemporaryDirectory() as folder:
        return load_dumps(unpack(BROKEN / f"{name}.tar.zst", Path(folder)))


@lru_cache(maxsize=1)
def healthy() -> ClusterState:
    """Return the recorded cluster in which nothing is broken."""
    return recorded("il-healthy")


def pod(prefix: str, node: str, state: ClusterState | None = None) -> PodMeta:
    """Return the pod of that beginning on a node."""
    objects = (state or healthy()).objects
    return next(known for known in objects.pods if known.name.startswith(prefix) and known.node_name == NodeName(node))


def edited(netns: NetnsId, change: Callable[[NetNS], NetNS], state: ClusterState | None = None) -> ClusterState:
    """Return a state with one namespace changed."""
    before = state or healthy()
    return replace(before, netns={**before.netns, netns: change(before.netns[netns])})


def with_link(netns: NetNS, name: str, **changes: object) -> NetNS:
    """Return a namespace with one interface changed."""
    assert netns.interface(name) is not None, name
    return replace(netns, interfaces=tuple(_changed(link, name, changes) for link in netns.interfaces))


def _changed(link: Interface, name: str, changes: dict[str, object]) -> Interface:
    return replace(link, **changes) if link.name == name else link


def with_sysctl(key: str, value: str) -> Callable[[NetNS], NetNS]:
    """Return the edit that sets one sysctl, and nothing along with it."""
    return lambda netns: replace(netns, sysctls={**netns.sysctls, key: value})


def broken(*changes: Change) -> ClusterState:
    """Return the healthy cluster after changes."""
    return apply(healthy(), changes)


def rules(netns: NetnsId, table: str, chain: str, state: ClusterState | None = None) -> Sequence[str]:
    """Return the texts of a chain's rules."""
    for known in (state or healthy()).netns[netns].tables:
        if known.name == table and known.family == 4:
            return [rule.raw for inner in known.chains if inner.name == chain for rule in inner.rules]
    raise KeyError(table)


def cut(netns: NetnsId, table: str, chain: str, containing: str) -> DeleteRule:
    """Return the change that deletes the first rule with a text in it."""
    texts = rules(netns, table, chain)
    at = next(index for index, text in enumerate(texts) if containing in text)
    return DeleteRule(netns=netns, backend="legacy", family=4, table=table, chain=chain, rule=at + 1, raw=texts[at])


def put(netns: NetnsId, table: str, chain: str, raw: str, rule: int = 1) -> InsertRule:
    """Return the change that inserts a rule."""
    return InsertRule(netns=netns, backend="legacy", family=4, table=table, chain=chain, rule=rule, raw=raw)


def host_end(prefix: str, node: str) -> str:
    """Return the name of the host end of a pod's veth."""
    inside = healthy().netns[pod(prefix, node).netns].interface("eth0")
    assert inside is not None and inside.peer is not None
    return inside.peer[1]


def ip_of(prefix: str, node: str) -> Ip:
    """Return a pod's address."""
    return pod(prefix, node).ips[0]
