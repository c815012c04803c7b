"""States for the tests of the snapshot: a strategy made from the model's own annotations, and a small cluster by hand."""

import typing
from collections.abc import Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec.structs import replace

from tasks.skoop.model.addr import Ip, Net
from tasks.skoop.model.cluster import ClusterObjects, ClusterState, NodeMeta, PodMeta, Service
from tasks.skoop.model.ids import NetnsId, NodeName, node_netns
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import (
    Interface,
    IpSet,
    IpSetEntry,
    Missing,
    NetNS,
    NextHop,
    NftTable,
    Route,
    Section,
    Socket,
)
from tasks.skoop.model.xtables import Backend, Chain, Match, Rule, Target, XTable

TEXT = st.text(alphabet="ab-/.é7", max_size=6)


def of(kind: Any) -> st.SearchStrategy[Any]:  # noqa: ANN401 -- types come in kinds that share no base
    """Values of a type of the model, whatever fields it has or will have."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if hasattr(kind, "__supertype__"):
        return of(kind.__supertype__)
    if origin in (typing.Union, UnionType):
        return st.one_of(*(st.none() if one is NoneType else of(one) for one in args))
    if origin is tuple:
        if args[-1] is Ellipsis:
            return st.lists(of(args[0]), max_size=2).map(tuple)
        return st.tuples(*map(of, args))
    if origin is dict:
        return st.dictionaries(of(args[0]), of(args[1]), max_size=2)
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(-1, 2**32)
    if kind is str:
        return TEXT
    if kind is bytes:
        return st.binary(max_size=4)
    if issubclass(kind, Enum):
        return st.sampled_from(list(kind))
    assert issubclass(kind, msgspec.Struct), kind
    fields = {name: of(hint) for name, hint in typing.get_type_hints(kind).items() if name in kind.__struct_fields__}
    return st.fixed_dictionaries({}, optional=fields).flatmap(lambda given: _whole(kind, fields, given))


def _whole(
    kind: type[Any], fields: Mapping[str, st.SearchStrategy[Any]], given: dict[str, Any]
) -> st.SearchStrategy[Any]:
    needed = {
        field.name: fields[field.name]
        for field in msgspec.structs.fields(kind)
        if field.required and field.name not in given
    }
    return st.fixed_dictionaries(needed).map(lambda more: kind(**given, **more))


def states() -> st.SearchStrategy[ClusterState]:
    return of(ClusterState).map(_consistent)


def _consistent(state: ClusterState) -> ClusterState:
    """A state names each namespace twice: the two agree."""
    return replace(state, netns={name: replace(netns, id=name) for name, netns in state.netns.items()})


def chain(name: str, *rules: str, policy: str = "") -> Chain:
    return Chain(
        name, policy, tuple(Rule(raw, (Match("src", (("src", False, (raw,)),)),), Target("ACCEPT")) for raw in rules)
    )


def table(*chains: Chain, name: str = "nat") -> XTable:
    return XTable(backend=Backend.LEGACY, family=4, name=name, chains=chains)


NFT = NftTable(
    family="ip",
    name="kube-proxy",
    objects=(
        '{"table": {"family": "ip", "name": "kube-proxy"}}',
        '{"chain": {"family": "ip", "table": "kube-proxy", "name": "services"}}',
        '{"rule": {"family": "ip", "table": "kube-proxy", "chain": "services", "handle": 1}}',
        '{"rule": {"family": "ip", "table": "kube-proxy", "chain": "services", "handle": 2}}',
        "not JSON at all",
    ),
    hooks=(("services", "nat", "prerouting", -100, "accept"),),
)


def node(
    name: str, *, tables: tuple[XTable, ...] = (table(chain("KUBE-SERVICES", "a", "b"), chain("KUBE-SEP-1", "c")),)
) -> NetNS:
    return NetNS(
        id=node_netns(name),
        interfaces=(Interface(index=1, name="lo"), Interface(index=2, name="eth0", kind="veth")),
        routes=(Route(dst=Net("0.0.0.0/0"), nexthops=(NextHop(dev="eth0", via=Ip("172.18.0.1")),)),),
        sockets=(Socket(protocol=Protocol.TCP, ip=Ip("0.0.0.0"), port=10250, process="kubelet"),),
        sysctls={"net/ipv4/ip_forward": "1"},
        tables=tables,
        nft=(NFT,),
        ipsets=(IpSet(name="pods", type="hash:net", entries=(IpSetEntry("10.0.0.0/8", nomatch=True),)),),
        missing=(Missing(section=Section.CONNTRACK, reason="conntrack is not installed"),),
    )


def cluster(*names: str) -> ClusterState:
    nodes = {node_netns(name): node(name) for name in names or ("n1", "n2")}
    return ClusterState(
        objects=ClusterObjects(
            nodes=tuple(NodeMeta(name=NodeName(name.partition("/")[2]), labels={"b": "2", "a": "1"}) for name in nodes),
            pods=(PodMeta(namespace="shop", name="web"),),
            services=(Service(namespace="shop", name="web", selector={"app": "web"}),),
            policies={"AdminNetworkPolicy": ('{"metadata":{"name":"a"},"spec":{}}',)},
            missing={"NetworkPolicy": "forbidden"},
        ),
        netns=nodes,
        taken_at="2026-01-02T03:04:05+00:00",
        source="test",
        uncollected={NetnsId("pod/shop/web"): "gone"},
        tools={"ip": "iproute2-6.1.0"},
    )
