"""Does a packet's address, port, device … stand in an ipset?

Follows ip_set_test and the kadt functions of net/netfilter/ipset: a set's type names its dimensions, the rule says for each
whether the packet's source or destination is looked up; prefixes are tried from the longest, and the first element found
decides, `nomatch` ones against. list:set asks its members in order. An element that cannot be read makes every "not in it"
unknown. A set's netmask is laid on the packet's addresses first, its markmask on the mark. Left out: timeouts (an element that
is listed has not run out).
"""

from collections.abc import Mapping

from tasks.skoop.model.addr import ip_int
from tasks.skoop.model.state import IpSet, IpSetEntry
from tasks.skoop.netstack.xtables.field_matches import ICMP_NAMES, ICMPV6_NAMES
from tasks.skoop.netstack.xtables.spelling import ALL_MARK, address, address_mask, number, protocol_number, span
from tasks.skoop.netstack.xtables.truth import NotUnderstood, Truth, unknown
from tasks.skoop.netstack.xtables.view import PacketView

Rest = tuple[object, ...]
"""The parts of an element that are no addresses, or what the packet has there."""
Key = tuple[tuple[int, ...], Rest]
"""The prefixes of an element, shifted right by their host bits, and the rest."""

ANY_FAMILY = frozenset(("list:set", "bitmap:port", "hash:mac"))
IP_KINDS = frozenset(("ip", "net"))
KINDS = IP_KINDS | {"port", "mark", "mac", "iface", "set"}
PORTED = frozenset((6, 17, 132, 136))


class _NotInPacket(Exception):
    """The packet has nothing that this dimension could compare, so no element fits."""


class CompiledSet:
    """One set, ready to be asked. `sets` are all sets of the namespace, for list:set."""

    def __init__(self, source: IpSet, sets: Mapping[str, "CompiledSet"]) -> None:
        self.source = source
        self.sets = sets
        self.kinds = tuple(source.type.partition(":")[2].split(","))
        self.any_protocol = source.type == "bitmap:port"
        self.bits = 128 if source.family == 6 else 32
        self.unread: tuple[str, ...] = ()
        self.members: tuple[str, ...] = ()
        self.tables: dict[tuple[int, ...], dict[Key, bool]] = {}
        self.lengths: tuple[tuple[int, ...], ...] = ()
        self.wildcards: list[tuple[tuple[int, ...], Key, bool]] = []
        """Elements whose device's name is only its beginning: lengths, key, nomatch."""
        self.mask = (1 << self.bits) - 1
        self._read = False

    def objections(self) -> tuple[str, ...]:
        """Return what of the set cannot be read: its type, or elements as they are listed."""
        if not set(self.kinds) <= KINDS:
            return (self.source.type,)
        if not self._read:
            self._load()
        return self.unread

    def _load(self) -> None:
        self._read = True
        unread = []
        if self.source.type == "list:set":
            self.members = tuple(entry.text.split()[0] for entry in self.source.entries if entry.text)
            return
        try:
            self.mask = _netmask(self.source, self.bits)
        except NotUnderstood as reason:
            self.unread = (str(reason),)
            return
        for entry in self.source.entries:
            try:
                self._add(entry)
            except NotUnderstood:
                unread.append(entry.text)
        self.unread = tuple(unread)
        self.lengths = tuple(sorted(self.tables, reverse=True))

    def _add(self, entry: IpSetEntry) -> None:
        words = entry.text.split()
        if not words:
            raise NotUnderstood(entry.text)
        parts = words[0].split(",")
        if self.source.type == "bitmap:ip,mac" and len(parts) == 1:
            parts.append("")
        if len(parts) != len(self.kinds):
            raise NotUnderstood(entry.text)
        lengths, prefixes, rest = [], [], []
        for kind, part in zip(self.kinds, parts, strict=True):
            if kind in IP_KINDS:
                value, mask = address_mask(part, 6 if self.bits == 128 else 4)
                lengths.append(mask.bit_count())
                prefixes.append(value >> (self.bits - lengths[-1]))
            else:
                rest.append(_element(kind, part, self.any_protocol))
        key = (tuple(prefixes), tuple(rest))
        if "wildcard" in words:
            if self.kinds != ("net", "iface"):
                raise NotUnderstood(entry.text)
            self.tables.setdefault(tuple(lengths), {})
            self.wildcards.append((tuple(lengths), key, entry.nomatch))
        else:
            self.tables.setdefault(tuple(lengths), {})[key] = entry.nomatch

    def test(self, view: PacketView, sides: tuple[bool, ...], *, return_nomatch: bool = False) -> Truth:
        """Return whether the packet fits; `sides` says for each dimension of the rule: source (True) or destination."""
        if not self._read:
            self._load()
        if self.source.type == "list:set":
            return self._test_members(view, sides, return_nomatch)
        if len(sides) < len(self.kinds):
            return False
        if self.source.type not in ANY_FAMILY and (self.source.family or 4) != view.family:  # bitmap:ip is IPv4's
            return False
        try:
            nomatch = self._find(*self._parts(view, sides))
        except _NotInPacket:
            return False
        except NotUnderstood as reason:
            return unknown(str(reason))
        if nomatch is not None:
            return nomatch == return_nomatch
        if self.unread:
            return unknown(f"the element {self.unread[0]!r} of the ipset {self.source.name}")
        return False

    def _parts(self, view: PacketView, sides: tuple[bool, ...]) -> tuple[tuple[int, ...], Rest]:
        """Return what the packet has in the set's dimensions: addresses, and the rest."""
        addresses: list[int] = []
        rest: list[object] = []
        for kind, of_source in zip(self.kinds, sides, strict=False):
            if kind in IP_KINDS:
                addresses.append((view.src if of_source else view.dst) & self.mask)
            elif kind == "mark":
                rest.append(view.mark & (self.source.markmask or ALL_MARK))
            else:
                rest.append(_part(kind, view, of_source, self.any_protocol))
        return tuple(addresses), tuple(rest)

    def _find(self, addresses: tuple[int, ...], rest: Rest) -> bool | None:
        """Return the nomatch flag of the most specific element that fits, None if none does."""
        for lengths in self.lengths:
            table = self.tables[lengths]
            prefixes = tuple(ip >> (self.bits - length) for ip, length in zip(addresses, lengths, strict=True))
            found = {table[prefixes, rest]} if (prefixes, rest) in table else set()
            if self.wildcards:
                found |= {
                    nomatch
                    for of, (wanted, (name,)), nomatch in self.wildcards
                    if of == lengths and wanted == prefixes and str(rest[0]).startswith(str(name))
                }
            if len(found) > 1:
                raise NotUnderstood(f"which of several elements of the ipset {self.source.name} decides")
            if found:
                return found.pop()
            if self.source.type == "bitmap:ip,mac" and (prefixes, ("",)) in table:
                return table[prefixes, ("",)]
        return None

    def _test_members(self, view: PacketView, sides: tuple[bool, ...], return_nomatch: bool) -> Truth:
        result: Truth = False
        for name in self.members:
            member = self.sets.get(name)
            if member is None or member.source.type == "list:set":
                truth: Truth = unknown(f"the ipset {name}")
            else:
                truth = member.test(view, sides, return_nomatch=return_nomatch)
            if truth is True:
                return True
            if truth is not False:
                result = truth
        return result


def _netmask(source: IpSet, bits: int) -> int:
    """Return the mask that a set lays on addresses."""
    full = (1 << bits) - 1
    if not source.netmask:
        return full
    if source.netmask.isdecimal() and int(source.netmask) <= bits:
        return full ^ (full >> int(source.netmask))
    try:
        return ip_int(address(source.netmask, 6 if bits == 128 else 4))
    except NotUnderstood:
        raise NotUnderstood(f"netmask {source.netmask}") from None


def _element(kind: str, text: str, any_protocol: bool) -> object:
    """Return one part of an element that is no address, in the form that `_part` gives."""
    if kind == "port":
        return (0, span(text, 0xFFFF)[0]) if any_protocol else _element_port(text)
    if kind == "mark":
        return number(text)
    if kind == "mac":
        return text.lower()
    if kind == "iface" and not text.startswith("physdev:"):
        return text
    if kind == "iface":
        return ("physdev", text)
    raise NotUnderstood(f"the dimension {kind}")


def _element_port(text: str) -> tuple[int, int]:
    """Return (protocol, port) of `proto:port`, or of `icmp:type/code`; a bare port is TCP's."""
    name, _, value = text.rpartition(":")
    protocol = protocol_number(name or "tcp")
    if protocol in (1, 58):
        kind, slash, code = value.partition("/")
        if not slash:
            known = (ICMP_NAMES if protocol == 1 else ICMPV6_NAMES).get(value)
            if known is None:
                raise NotUnderstood(text)
            return (protocol, known[0] << 8 | (known[1] or 0))
        return (protocol, number(kind) << 8 | number(code))
    return (protocol, span(value, 0xFFFF)[0])


def _part(kind: str, view: PacketView, of_source: bool, any_protocol: bool) -> object:
    """Return what the packet has in one dimension that is no address. Raises _NotInPacket, NotUnderstood."""
    if kind == "port":
        return _port(view, of_source, any_protocol)
    if kind == "iface":
        return _present(view.in_dev if of_source else view.out_dev)
    if kind == "mac" and of_source:
        return _present(view.context.mac.lower())
    if kind == "mac":
        raise NotUnderstood("the destination MAC of the frame")
    raise NotUnderstood(f"the dimension {kind} of an ipset")


def _port(view: PacketView, of_source: bool, any_protocol: bool) -> tuple[int, int]:
    """Return (protocol, port) as ip_set_get_ip4_port does; `any_protocol` sets look at the port alone (protocol 0)."""
    if view.protocol in PORTED:
        return (0 if any_protocol else view.protocol, view.sport if of_source else view.dport)
    if any_protocol:
        raise _NotInPacket
    if view.protocol in (1, 58):
        if view.packet.icmp_type < 0:
            raise NotUnderstood("the packet's ICMP type")
        return (view.protocol, view.packet.icmp_type << 8 | view.packet.icmp_code)
    if view.protocol < 0:
        raise NotUnderstood("the number of the packet's protocol")
    return (view.protocol, 0)


def _present(text: str) -> str:
    if not text:
        raise _NotInPacket
    return text
