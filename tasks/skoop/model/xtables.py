"""iptables rules as they stand in a dump: typed where we know the extension, kept as text where we do not."""

from enum import StrEnum

from msgspec import Struct


class Backend(StrEnum):
    """Which of the two implementations of iptables owns a table."""

    LEGACY = "legacy"
    NFT = "nft"


class Match(Struct, frozen=True, gc=False, array_like=True):
    """One condition of a rule, as the dump has it.

    `name` is the extension (`conntrack`, `addrtype`, …), or for what needs no `-m`: `src`, `dst`, `in`, `out`, `proto`,
    `frag`; `tcp`, `udp`, `icmp` … for the protocol's own. `options` are (option, negated, values), for instance
    `("ctstate", False, ("RELATED,ESTABLISHED",))`; options without a value have `()`. An extension that the simulator does
    not know is kept in the same form; it evaluates to unknown, never to true.
    """

    name: str
    options: tuple[tuple[str, bool, tuple[str, ...]], ...] = ()


class Target(Struct, frozen=True, gc=False, array_like=True):
    """What a rule does: `name` is ACCEPT, DNAT, a chain, … or "" (counts only); `goto` for `-g`; options as in Match."""

    name: str = ""
    goto: bool = False
    options: tuple[tuple[str, bool, tuple[str, ...]], ...] = ()


class Rule(Struct, frozen=True, gc=False, array_like=True):
    """One rule. `raw` is its text after `-A CHAIN `, without counters, as the user would see it in his own dump."""

    raw: str
    matches: tuple[Match, ...] = ()
    target: Target = Target()


class Chain(Struct, frozen=True, gc=False, array_like=True):
    """A chain: `policy` is ACCEPT or DROP for a built-in chain, "" for a user's."""

    name: str
    policy: str = ""
    rules: tuple[Rule, ...] = ()


class XTable(Struct, frozen=True, gc=False, kw_only=True):
    """One table (raw, mangle, nat, filter, security) of one family (4 or 6) in one back end."""

    backend: Backend
    family: int
    name: str
    chains: tuple[Chain, ...] = ()
