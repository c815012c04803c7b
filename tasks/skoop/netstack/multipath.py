"""Which leg of a multipath route does a packet take? Any, by weight; but packets of one hash all take the same.

Follows fib_select_multipath and fib_multipath_hash (net/ipv4) with the default policy, by which the two addresses decide. What
the hash of a pair of addresses is hangs on a secret of the kernel's: the first packet is followed over every leg.
"""

from msgspec.structs import replace

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
    before = chosen_leg(skb.flow, _slot(ns, found, src, dst))
    return tuple(replace(leg, share=1.0) for leg in found.legs if _name(leg) == before)[:1] or found.legs


def remember_leg(ns: Namespace, skb: Skb, found: Found, leg: Leg, *, src: str, dst: str) -> None:
    """Note which leg was taken, for the packets that follow."""
    if len(found.legs) > 1:
        skb.flow = History(skb.flow).chose(_slot(ns, found, src, dst), _name(leg))


def _slot(ns: Namespace, found: Found, src: str, dst: str) -> tuple[str, ...]:
    return (ns.id, found.route.dst if found.route else "", src, dst)


def _name(leg: Leg) -> str:
    return f"{leg.nexthop.via} {leg.dev}"
