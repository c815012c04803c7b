"""Which leg of a multipath route does a packet take? Any, by weight; but packets of one hash all take the same.

Follows fib_select_multipath and fib_multipath_hash (net/ipv4) with the default policy, by which the two addresses decide. What
the hash of a pair of addresses is hangs on a secret of the kernel's: the first packet is followed over every leg.
"""

from msgspec.structs import replace

from tasks.skoop.model.state import NeighbourState
from tasks.skoop.netstack.conntrack import History, chosen_leg
from tasks.skoop.netstack.fib import Found, Leg
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.skb import Skb


def legs_for(ns: Namespace, skb: Skb, found: Found, *, src: str, dst: str) -> tuple[Leg, ...]:
    """Return the legs that the packet may take: all, or the one that an earlier packet between these addresses took.

    `src` is "" for what is made here.
    """
    if len(found.legs) == 1:
        return found.legs
    legs = _answering(ns, found)
    before = chosen_leg(skb.flow, _slot(ns, found, src, dst))
    return tuple(replace(leg, share=1.0) for leg in legs if _name(leg) == before)[:1] or legs


def _answering(ns: Namespace, found: Found) -> tuple[Leg, ...]:
    """Return the legs whose gateway is not known to be silent, if the kernel looks (nexthop_is_good_nh, fib_good_nh)."""
    by_object = bool(found.route and found.route.nhid)
    if not by_object and not (found.rule.family == 4 and ns.sysctl("net/ipv4/fib_multipath_use_neigh")):
        return found.legs
    good = [leg for leg in found.legs if not _silent(ns, leg)]
    if not good or len(good) == len(found.legs):
        return found.legs
    total = sum(leg.share for leg in good)
    return tuple(replace(leg, share=leg.share / total) for leg in good)


def _silent(ns: Namespace, leg: Leg) -> bool:
    entry = ns.neighbours.get((leg.dev, leg.nexthop.via or ""))
    return entry is not None and entry.state in (NeighbourState.FAILED, NeighbourState.INCOMPLETE, NeighbourState.NONE)


def remember_leg(ns: Namespace, skb: Skb, found: Found, leg: Leg, *, src: str, dst: str) -> None:
    """Note which leg was taken, for the packets that follow."""
    if len(found.legs) > 1:
        skb.flow = History(skb.flow).chose(_slot(ns, found, src, dst), _name(leg))


def _slot(ns: Namespace, found: Found, src: str, dst: str) -> tuple[str, ...]:
    return (ns.id, found.route.dst if found.route else "", src, dst)


def _name(leg: Leg) -> str:
    return f"{leg.nexthop.via} {leg.dev}"
