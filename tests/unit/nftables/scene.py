"""Small worlds for the tests of native rules: tables as nft lists them, a packet, and what a base chain says of it."""

import json
from typing import Any

from tasks.skoop.model.addr import Ip, Net
from tasks.skoop.model.ids import node_netns
from tasks.skoop.model.state import Address, Interface, NetNS, NextHop, NftTable, Route
from tasks.skoop.netstack.nftables.compile import compile_chains
from tasks.skoop.netstack.nftables.table import BaseChain
from tasks.skoop.netstack.xtables.api import Hook, HookContext, TableResult
from tests.unit.xtables.scene import context

NODE = node_netns("n1")

Json = Any
"""A statement, expression or object as nft prints it."""

ACCEPT, DROP, RETURN, CONTINUE = ({word: None} for word in ("accept", "drop", "return", "continue"))


def jump(chain: str) -> Json:
    return {"jump": {"target": chain}}


def goto(chain: str) -> Json:
    return {"goto": {"target": chain}}


def match(left: Json, right: Json, op: str = "==") -> Json:
    return {"match": {"op": op, "left": left, "right": right}}


def payload(words: str) -> Json:
    protocol, field = words.split()
    return {"payload": {"protocol": protocol, "field": field}}


def meta(key: str) -> Json:
    return {"meta": {"key": key}}


def ct(key: str, **more: str) -> Json:
    return {"ct": {"key": key, **more}}


def put(key: Json, value: Json) -> Json:
    return {"mangle": {"key": key, "value": value}}


def vmap(key: Json, *pairs: Json) -> Json:
    return {"vmap": {"key": key, "data": {"set": list(pairs)}}}


def mapped(key: Json, *pairs: Json) -> Json:
    return {"map": {"key": key, "data": {"set": list(pairs)}}}


def concat(*parts: Json) -> Json:
    return {"concat": list(parts)}


def prefix(address: str, length: int) -> Json:
    return {"prefix": {"addr": address, "len": length}}


def span(first: Json, last: Json) -> Json:
    return {"range": [first, last]}


def numgen(size: int, offset: int = 0, mode: str = "random") -> Json:
    return {"numgen": {"mode": mode, "mod": size, "offset": offset}}


def named(kind: str, name: str, elements: list[Json], **more: Json) -> Json:
    """Return a set or map."""
    return {kind: {"family": "inet", "table": "t", "name": name, "handle": 1, "elem": elements, **more}}


def table(
    chains: dict[str, list[list[Json]]],
    *,
    objects: tuple[Json, ...] = (),
    hooks: tuple[tuple[str, str, str, int, str], ...] = (("base", "filter", "forward", 0, "accept"),),
    family: str = "inet",
    name: str = "t",
) -> NftTable:
    """Return a table of chains, each a list of rules, each a list of statements; `hooks` are its base chains."""
    where = {"family": family, "table": name}
    texts = [*objects, *({"chain": {**where, "name": chain, "handle": 1}} for chain in chains)]
    for chain, rules in chains.items():
        texts += [{"rule": {**where, "chain": chain, "handle": 9, "expr": rule}} for rule in rules]
    return NftTable(family=family, name=name, objects=tuple(json.dumps(each) for each in texts), hooks=hooks)


LINKS = (
    Interface(index=1, name="lo", kind="loopback"),
    Interface(index=2, name="rc", kind="veth", addresses=(Address(ip=Ip("10.1.0.1"), prefixlen=24),)),
    Interface(index=3, name="rs", kind="veth", addresses=(Address(ip=Ip("10.2.0.1"), prefixlen=24),)),
)


def _route(dst: str, dev: str, kind: str = "unicast", number: int = 254) -> Route:
    return Route(dst=Net(dst), table=number, type=kind, nexthops=(NextHop(dev=dev),), scope="link")


ROUTES = (
    _route("10.1.0.0/24", "rc"),
    _route("10.2.0.0/24", "rs"),
    _route("10.1.0.1/32", "rc", "local", 255),
    _route("10.2.0.1/32", "rs", "local", 255),
)


def netns(*tables: NftTable, **more: Any) -> NetNS:
    return NetNS(id=NODE, interfaces=LINKS, routes=ROUTES, nft=tables, **more)


def base_chain(source: NftTable, hook: Hook, family: int = 4) -> BaseChain:
    (found,) = compile_chains(netns(source)).at(family, hook)
    return found


def evaluate(source: NftTable, at: HookContext | None = None) -> tuple[TableResult, ...]:
    """Return what the table's one base chain at the hook of `at` says of its packet."""
    at = at or context()
    return base_chain(source, at.hook, at.packet.version).evaluate(at)


def only(source: NftTable, at: HookContext | None = None) -> TableResult:
    """Return the one way through."""
    (result,) = evaluate(source, at)
    return result


def acts(result: TableResult) -> list[str]:
    """Return the steps as `chain#rule action`."""
    return [f"{step.place.chain}#{step.place.rule} {step.action}" for step in result.steps]
