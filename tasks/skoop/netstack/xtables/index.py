"""Which rules of a long chain can a packet fit at all?

Service chains have thousands of rules, each for one address or port. The index files every rule under one thing that the
packet must have for it: destination, source, protocol and destination port, device, or a prefix, whichever is shared by the
fewest rules. A packet then meets the rules filed under what it has, and those that cannot be filed, in chain order. None of
these things changes while a packet is in a table (NAT ends the table), so the rules left out would not have matched.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from enum import IntEnum, auto

from tasks.skoop.model.xtables import Match, Rule
from tasks.skoop.netstack.xtables.spelling import prefix
from tasks.skoop.netstack.xtables.truth import NotUnderstood
from tasks.skoop.netstack.xtables.view import PacketView

LONG = 16
"""Chains with at least this many rules get an index; below that, asking them all is as fast."""


class Dimension(IntEnum):
    """What a rule can be filed under (numbers, because they are hashed for every rule)."""

    DST = auto()
    SRC = auto()
    PORT = auto()
    IN = auto()
    OUT = auto()
    DST_NET = auto()
    SRC_NET = auto()


Key = tuple[Dimension, Hashable]

PORTED = {"tcp": 6, "udp": 17, "sctp": 132}


class ChainIndex:
    """The positions (from 0) of a chain's rules by what a packet must have to fit them."""

    def __init__(self, rules: Sequence[Rule], family: int) -> None:
        self.bits = 32 if family == 4 else 128
        keys = [keys_of(rule, family) for rule in rules]
        counts = Counter(key for found in keys for key in found)
        self.always: list[int] = []
        self._filed: dict[Dimension, dict[Hashable, list[int]]] = {
            dimension: defaultdict(list) for dimension in Dimension
        }
        for position, found in enumerate(keys):
            if found:
                dimension, key = min(found, key=counts.__getitem__) if len(found) > 1 else found[0]
                self._filed[dimension][key].append(position)
            else:
                self.always.append(position)
        for filed in self._filed.values():
            filed.default_factory = None  # type: ignore[attr-defined]  # they are defaultdicts until here
        self._lengths = {
            dimension: tuple(sorted({key[0] for key in self._filed[dimension]}))  # type: ignore[index]  # (length, prefix)
            for dimension in (Dimension.DST_NET, Dimension.SRC_NET)
        }

    def candidates(self, view: PacketView) -> list[int]:
        """Return the positions of all rules that the packet might fit, ascending."""
        found = list(self.always)
        filed = self._filed
        for dimension, key in (
            (Dimension.DST, view.dst),
            (Dimension.SRC, view.src),
            (Dimension.PORT, (view.protocol, view.dport)),
            (Dimension.IN, view.in_dev),
            (Dimension.OUT, view.out_dev),
        ):
            hit = filed[dimension].get(key)
            if hit:
                found += hit
        for dimension, address in ((Dimension.DST_NET, view.dst), (Dimension.SRC_NET, view.src)):
            for length in self._lengths[dimension]:
                hit = filed[dimension].get((length, address >> (self.bits - length)))
                if hit:
                    found += hit
        found.sort()
        return found


def keys_of(rule: Rule, family: int) -> list[Key]:
    """Return everything that a rule can be filed under: what a packet certainly has if the rule matches."""
    found: list[Key] = []
    for match in rule.matches:
        name = match.name
        if name in ("dst", "src"):
            _add_address(found, match, family)
        elif name in ("in", "out"):
            _add_device(found, match)
        elif name in PORTED:
            _add_port(found, match)
    return found


def _add_address(found: list[Key], match: Match, family: int) -> None:
    if len(match.options) != 1:
        return
    name, negated, values = match.options[0]
    if negated or name != match.name or len(values) != 1:
        return
    try:
        plain = prefix(values[0], family)
    except NotUnderstood:
        return
    if plain is None or plain[1] == 0:
        return
    value, length = plain
    bits = 32 if family == 4 else 128
    if length == bits:
        found.append((Dimension.DST if name == "dst" else Dimension.SRC, value))
    else:
        key = (length, value >> (bits - length))
        found.append((Dimension.DST_NET if name == "dst" else Dimension.SRC_NET, key))


def _add_device(found: list[Key], match: Match) -> None:
    name, negated, values = match.options[0]
    if not negated and len(values) == 1 and not values[0].endswith("+"):
        found.append((Dimension.IN if name == "in" else Dimension.OUT, values[0]))


def _add_port(found: list[Key], match: Match) -> None:
    for name, negated, values in match.options:
        if name == "dport" and not negated and len(values) == 1 and values[0].isdecimal() and values[0][0] != "0":
            found.append((Dimension.PORT, (PORTED[match.name], int(values[0]))))
            return
