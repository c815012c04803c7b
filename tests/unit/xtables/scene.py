"""Small worlds for the tests of the rule engine: rules as text, a packet, and a namespace whose answers are fixed."""

from dataclasses import dataclass
from typing import Any

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.ids import node_netns
from tasks.skoop.model.packet import CtState, Packet, Protocol, TcpFlags
from tasks.skoop.model.state import IpSet, IpSetEntry, NetNS
from tasks.skoop.model.xtables import Backend
from tasks.skoop.netstack.xtables.api import CompiledTable, Hook, HookContext, TableResult
from tasks.skoop.netstack.xtables.compile import Tables
from tasks.skoop.parse.iptables import parse_iptables_save

NODE = node_netns("n1")

Field = Any
"""What a test says of one field of a packet, a hook or a namespace; the struct that it goes into checks it."""


OWN = {"10.1.0.1": "rc", "10.2.0.1": "rs", "fd00:1::1": "rc", "fd00:2::1": "rs"}


@dataclass(frozen=True, kw_only=True)
class FixedFacts:
    """A namespace that owns the addresses OWN (address → device) and some broadcast addresses."""

    broadcast: frozenset[str] = frozenset(("10.1.0.255", "255.255.255.255"))
    socket: bool | None = None
    reverse: bool = True

    def address_type(self, ip: Ip, dev: str | None) -> str:
        if ip in OWN:
            return "LOCAL" if dev in (None, OWN[ip]) else "UNICAST"
        if ip in self.broadcast:
            return "BROADCAST"
        return "MULTICAST" if ip.startswith(("224.", "ff")) else "UNICAST"

    def reverse_path_ok(self, packet: Packet, dev: str, *, loose: bool, validmark: bool, accept_local: bool) -> bool:
        return self.reverse

    def has_socket(self, packet: Packet, *, transparent: bool, wildcard: bool) -> bool | None:
        return self.socket


def packet(family: int = 4, **changes: Field) -> Packet:
    """Return a first TCP packet from 10.1.0.2 to 10.2.0.2 port 80, with changes."""
    ends = ("10.1.0.2", "10.2.0.2") if family == 4 else ("fd00:1::2", "fd00:2::2")
    plain = Packet(
        src=Ip(ends[0]),
        dst=Ip(ends[1]),
        protocol=Protocol.TCP,
        sport=40000,
        dport=80,
        tcp_flags=TcpFlags.SYN,
        ct_state=CtState.NEW,
        ttl=63,
    )
    return plain.with_(**changes)


def context(
    hook: Hook = Hook.FORWARD,
    *,
    facts: FixedFacts | None = None,
    family: int = 4,
    at: dict[str, Any] | None = None,
    **changes: Field,
) -> HookContext:
    """Return the packet at a hook, between devices rc and rs as far as the hook has them; `at` are fields of the context."""
    fields: dict[str, Any] = {
        "in_dev": "rc" if hook in (Hook.PREROUTING, Hook.INPUT, Hook.FORWARD) else "",
        "out_dev": "rs" if hook in (Hook.FORWARD, Hook.OUTPUT, Hook.POSTROUTING) else "",
        **(at or {}),
    }
    return HookContext(
        netns=NODE,
        hook=hook,
        packet=packet(family, **changes),
        facts=facts or FixedFacts(),
        **fields,
    )


def ipset(name: str, kind: str, *elements: str, family: int = 4) -> IpSet:
    """Return an ipset; elements that end in ` nomatch` are exceptions."""
    entries = tuple(IpSetEntry(text.removesuffix(" nomatch"), text.endswith(" nomatch")) for text in elements)
    return IpSet(name=name, type=kind, family=family, entries=entries)


def compiled(
    text: str, *, family: int = 4, backend: Backend = Backend.LEGACY, index_from: int = 16, **netns: Field
) -> Tables:
    """Return the compiled tables of a dump."""
    tables = parse_iptables_save(text, backend=backend, family=family)
    return Tables(NetNS(id=NODE, tables=tables, **netns), index_from=index_from)


def table_of(
    rules: str, *, table: str = "filter", family: int = 4, chain: str = "FORWARD", **more: Field
) -> CompiledTable:
    """Return one table whose built-in chain has policy ACCEPT. Lines of `rules` are `:CHAIN`, `:CHAIN POLICY` or `-A …`."""
    lines = [line.strip() for line in rules.strip().splitlines() if line.strip()]
    declared = [line if " " in line else f"{line} -" for line in lines if line.startswith(":")]
    if not any(line.startswith(f":{chain} ") for line in declared):
        declared.insert(0, f":{chain} ACCEPT")
    text = "\n".join([f"*{table}", *declared, *(line for line in lines if not line.startswith(":")), "COMMIT", ""])
    return compiled(text, family=family, **more).tables[family, table][0]


def minimal(result: TableResult) -> list[str]:
    """Return the steps as `CHAIN#N action detail`."""
    return [f"{step.place.chain}#{step.place.rule} {step.action} {step.detail}".rstrip() for step in result.steps]
