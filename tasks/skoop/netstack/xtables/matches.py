"""Every match that is simulated: its name in a rule, and the function that makes a condition of its options.

`MATCHES` is complete on one screen; what is not in it, or has an option that its function does not know, is unknown and says
so. `SPLITS` and `UNKNOWN` name those whose answer no dump can give.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache

from tasks.skoop.model.state import NetNS, Section
from tasks.skoop.model.xtables import Match
from tasks.skoop.netstack.xtables import chance_matches as chance
from tasks.skoop.netstack.xtables import connection_matches as connection
from tasks.skoop.netstack.xtables import field_matches as field
from tasks.skoop.netstack.xtables import header_matches as header
from tasks.skoop.netstack.xtables import host_matches as host
from tasks.skoop.netstack.xtables.ipset import CompiledSet
from tasks.skoop.netstack.xtables.spelling import Option, Options
from tasks.skoop.netstack.xtables.truth import Condition, NotUnderstood, Truth, negated
from tasks.skoop.netstack.xtables.view import PacketView

Builder = Callable[[Options, int], Condition]
"""Makes a condition of a match's options for a family (4 or 6). Raises NotUnderstood."""

MATCHES: Mapping[str, Builder] = {
    "src": header.source,
    "dst": header.destination,
    "in": header.in_device,
    "out": header.out_device,
    "proto": header.protocol,
    "frag": header.fragment,
    "tcp": header.tcp,
    "udp": header.udp,
    "sctp": header.sctp,
    "icmp": field.icmp,
    "icmp6": field.icmp,
    "multiport": header.multiport,
    "iprange": header.iprange,
    "length": field.length,
    "ttl": field.hop_limit,
    "hl": field.hop_limit,
    "tos": field.tos,
    "dscp": field.dscp,
    "ecn": field.ecn,
    "dccp": header.unsimulated_protocol,
    "udplite": header.unsimulated_protocol,
    "ah": header.unsimulated_protocol,
    "esp": header.unsimulated_protocol,
    "ipcomp": header.unsimulated_protocol,
    "hbh": header.no_extension_header,
    "rt": header.no_extension_header,
    "mh": header.no_extension_header,
    "ipv6header": header.ipv6header,
    "srh": header.no_extension_header,
    "mark": connection.mark,
    "connmark": connection.connmark,
    "conntrack": connection.conntrack,
    "state": connection.state,
    "helper": connection.helper,
    "addrtype": host.addrtype,
    "physdev": host.physdev,
    "owner": host.owner,
    "socket": host.socket,
    "rpfilter": host.rpfilter,
    "mac": host.mac,
    "pkttype": host.pkttype,
    "policy": host.policy,
    "cgroup": host.cgroup,
    "comment": host.nothing_to_ask,
    "nfacct": host.nothing_to_ask,
    "statistic": chance.statistic,
    "limit": chance.limit,
    "hashlimit": chance.hashlimit,
    "time": chance.either_way,
    "cpu": chance.either_way,
    "quota": chance.moving_counter,
}
"""Name of a match as `-m` has it (src, dst, in, out, proto, frag: without `-m`) → its builder. See also `Scope.condition`."""

REMARKS = frozenset(("comment",))
"""Matches that are no condition."""

OF_NAMESPACE = frozenset(("set", "recent", "connlimit", "ipvs"))
"""Matches whose condition is made of more than their options: of the namespace's state, or of the chain."""

SHARED_NAMES = frozenset(("dst", "frag"))
"""Names that are `-d` and `-f`, and in IPv6 also matches of extension headers, told apart by their options."""

COUNTER_OPTIONS = frozenset(("packets-eq", "packets-lt", "packets-gt", "bytes-eq", "bytes-lt", "bytes-gt"))
NO_CONDITION = frozenset(("update-counters", "update-subcounters"))


def _not_simulated(_: Options, __: int) -> Condition:
    raise NotUnderstood("it is not simulated")


def _of_packet(match: Match, family: int) -> Condition | str:
    """Return the condition of a match that is made of its options alone, or why there is none: the same in every namespace."""
    if match.name in SHARED_NAMES and (not match.options or match.options[0][0] != match.name):
        return _built(header.no_extension_header, match, family)
    return _built(MATCHES.get(match.name, _not_simulated), match, family)


@lru_cache(maxsize=1 << 14)
def _built(builder: Builder, match: Match, family: int) -> Condition | str:
    try:
        return builder(match.options, family)
    except NotUnderstood as reason:
        return f"-m {match.name}: {reason}"
    except (ValueError, IndexError):
        return f"-m {match.name}: its options are incomplete"


def _shared_by_all(match: Match, family: int) -> Condition:
    found = _of_packet(match, family)
    return chance.not_simulated(match.name, match.options, found) if isinstance(found, str) else found


class Scope:
    """What conditions of one family are made from: the namespace's state, and those made already."""

    def __init__(self, netns: NetNS, family: int) -> None:
        self.netns = netns
        self.family = family
        self.sets: dict[str, CompiledSet] = {}
        self._made: dict[Match, Condition] = {}
        for each in netns.ipsets:
            self.sets[each.name] = CompiledSet(each, self.sets)

    def conditions(self, matches: tuple[Match, ...], lists: int = 1) -> tuple[Condition, ...]:
        """Return the conditions of a rule, in order; equal ones are shared.

        `lists` is how many `recent` lists its chain still asks for, with this one (see `chance_matches.recent`).
        """
        return tuple(
            self.condition(match, lists) if match.name == "recent" else self._shared(match)
            for match in matches
            if match.name not in REMARKS
        )

    def _shared(self, match: Match) -> Condition:
        if match.name not in OF_NAMESPACE:
            return _shared_by_all(match, self.family)
        if match not in self._made:
            self._made[match] = self.condition(match)
        return self._made[match]

    def condition(self, match: Match, lists: int = 1) -> Condition:
        """Return the condition of one match; one that cannot be evaluated answers unknown, with the reason."""
        found = self._condition_or_why(match, lists)
        return chance.not_simulated(match.name, match.options, found) if isinstance(found, str) else found

    def objection(self, match: Match) -> str:
        """Return why a match cannot be evaluated, "" if it can."""
        found = self._condition_or_why(match, 1)
        return found if isinstance(found, str) else ""

    def _condition_or_why(self, match: Match, lists: int) -> Condition | str:
        try:
            if match.name == "set":
                return self._in_set(match.options)
            if match.name == "recent":
                return chance.recent(match.options, lists)
            if match.name == "connlimit":
                lacking = self.netns.lacks(Section.CONNTRACK)
                return connection.connlimit(match.options, None if lacking else self.netns.conntrack)
            if match.name == "ipvs":
                lacking = self.netns.lacks(Section.IPVS)
                return host.ipvs(match.options, None if lacking else len(self.netns.ipvs))
            return _of_packet(match, self.family)
        except NotUnderstood as reason:
            return f"-m {match.name}: {reason}"
        except (ValueError, IndexError):
            return f"-m {match.name}: its options are incomplete"

    def _in_set(self, options: Options) -> Condition:
        given = {option[0]: option for option in options}
        test: Option | None = given.get("match-set")
        if test is None or len(test[2]) != 2:
            raise NotUnderstood("a set match without --match-set NAME FLAGS")
        if not COUNTER_OPTIONS.isdisjoint(given):
            raise NotUnderstood("the counters of an ipset's elements")
        if not set(given) <= {"match-set", "return-nomatch"} | NO_CONDITION:
            raise NotUnderstood(f"--{', --'.join(given)}")
        name, flags = test[2]
        found = self.sets.get(name)
        if found is None:
            raise NotUnderstood(self.netns.lacks(Section.IPSETS) or f"the ipset {name} is not in the collected state")
        sides = tuple(flag == "src" for flag in flags.split(","))
        return_nomatch = "return-nomatch" in given

        def holds(view: PacketView) -> Truth:
            return found.test(view, sides, return_nomatch=return_nomatch)

        return negated(holds, test[1])
