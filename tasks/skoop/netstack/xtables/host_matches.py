"""Which conditions ask the namespace: address types, bridge ports, sockets, senders, reverse paths, link layer.

Follows xt_addrtype.c, xt_physdev.c, xt_owner.c, xt_socket.c, ipt_rpfilter.c, xt_mac.c, xt_pkttype.c, xt_policy.c (no IPsec is
collected: taken as none) and xt_ipvs.c.
"""

from collections.abc import Callable

from tasks.skoop.model.addr import Ip, is_multicast
from tasks.skoop.netstack.xtables.api import Hook, SentBy
from tasks.skoop.netstack.xtables.header_matches import device_test, each
from tasks.skoop.netstack.xtables.spelling import Option, Options, names, only, span
from tasks.skoop.netstack.xtables.truth import Chance, Condition, NotUnderstood, Truth, unknown
from tasks.skoop.netstack.xtables.view import PacketView

ADDRESS_TYPES = frozenset(
    (
        *("UNSPEC", "UNICAST", "LOCAL", "BROADCAST", "ANYCAST", "MULTICAST"),
        *("BLACKHOLE", "UNREACHABLE", "PROHIBIT", "THROW", "NAT", "XRESOLVE"),
    )
)
ROUTED_TYPES = frozenset(("LOCAL", "ANYCAST", "UNREACHABLE"))
"""Types that IPv6 takes from a route; the others it takes from the address alone."""

NO_IPSEC = "no IPsec policy applies"


def addrtype(options: Options, family: int) -> Condition:
    """`-m addrtype`: source and destination by the routing tables, as seen from one device with --limit-iface-*."""
    given = {name: (name, negate, values) for name, negate, values in options}
    if not set(given) <= {"src-type", "dst-type", "limit-iface-in", "limit-iface-out"}:
        raise NotUnderstood(f"--{', --'.join(given)}")
    limit_in, limit_out = "limit-iface-in" in given, "limit-iface-out" in given
    fits = _fits6 if family == 6 else _fits4

    def build(option: Option) -> Condition:
        wanted, negate, of_source = names(only(option), ADDRESS_TYPES), option[1], option[0] == "src-type"

        def holds(view: PacketView) -> Truth:
            dev = view.in_dev if limit_in else view.out_dev if limit_out else None
            ip = view.packet.src if of_source else view.packet.dst
            return fits(view, ip, dev or None, wanted) != negate

        return holds

    return each(tuple(option for option in options if option[0].endswith("-type")), build)


def _fits4(view: PacketView, ip: Ip, dev: str | None, wanted: frozenset[str]) -> bool:
    return view.context.facts.address_type(ip, dev) in wanted


def _fits6(view: PacketView, ip: Ip, dev: str | None, wanted: frozenset[str]) -> bool:
    """IPv6 wants every named property of the address itself, and one of the named properties of its route."""
    if "MULTICAST" in wanted and not is_multicast(ip):
        return False
    if "UNICAST" in wanted and (ip == "::" or is_multicast(ip)):
        return False
    if "UNSPEC" in wanted and ip != "::":
        return False
    routed = wanted & ROUTED_TYPES
    return not routed or view.context.facts.address_type(ip, dev) in routed


def physdev(options: Options, _: int) -> Condition:
    """`-m physdev`: a packet that did not come through a bridge port fits only where every option is negated."""

    def build(option: Option) -> Condition:
        name, negate, values = option
        if name == "physdev-is-bridged":
            return lambda view: bool(view.context.phys_in and view.context.phys_out) != negate
        if name == "physdev-is-in":
            return lambda view: bool(view.context.phys_in) != negate
        if name == "physdev-is-out":
            return lambda view: bool(view.context.phys_out) != negate
        if name not in ("physdev-in", "physdev-out") or len(values) != 1:
            raise NotUnderstood(f"--{name}")
        fits = device_test(values[0])
        if name == "physdev-in":
            return lambda view: (view.context.phys_in != "" and fits(view.context.phys_in)) != negate
        return lambda view: (view.context.phys_out != "" and fits(view.context.phys_out)) != negate

    return each(options, build)


def owner(options: Options, _: int) -> Condition:
    """`-m owner`: which process of this host sent it; open where its user is not known."""

    def build(option: Option) -> Condition:
        name, negate, _values = option
        if name == "suppl-groups":
            raise NotUnderstood("--suppl-groups: the groups of the sender")
        if name == "socket-exists":
            return lambda view: (_sent_by(view) != SentBy.NOBODY) != negate
        if name not in ("uid-owner", "gid-owner"):
            raise NotUnderstood(f"--{name}")
        low, high = span(only(option), 0xFFFFFFFF, "-")

        def within(number: int) -> bool:
            return low <= number <= high

        if name == "uid-owner":
            return lambda view: _local_id(view, view.context.local_uid, f"uid {low}-{high}", within, negate)
        return lambda view: _local_id(view, view.context.local_gid, f"gid {low}-{high}", within, negate)

    return each(options, build)


def _sent_by(view: PacketView) -> SentBy:
    return view.context.sent_by if view.context.hook in (Hook.OUTPUT, Hook.POSTROUTING) else SentBy.NOBODY


def _local_id(view: PacketView, number: int | None, key: str, within: Callable[[int], bool], negate: bool) -> Truth:
    """owner_mt: what no process has sent has no owner, so that only a negated option holds."""
    if _sent_by(view) != SentBy.PROCESS:
        return negate
    if number is None:
        return Chance(missing=("which user sent the packet",), key=f"owner {key}", inverted=negate)
    return within(number) != negate


def socket(options: Options, _: int) -> Condition:
    """`-m socket`: a socket of this host takes the packet; listeners on any address only count with --nowildcard."""
    given = {name for name, _, _ in options}
    if not given <= {"transparent", "nowildcard", "restore-skmark"}:
        raise NotUnderstood(f"--{', --'.join(sorted(given))}")
    transparent, wildcard, restores = "transparent" in given, "nowildcard" in given, "restore-skmark" in given
    key = f"socket {transparent} {wildcard}"

    def holds(view: PacketView) -> Truth:
        found = view.context.facts.has_socket(view.packet, transparent=transparent, wildcard=wildcard)
        if found is None:
            return unknown("the sockets of the namespace", key)
        if found and restores:
            return unknown("the mark of the socket", key)
        return found

    return holds


def rpfilter(options: Options, _: int) -> Condition:
    """`-m rpfilter`."""
    given = {name for name, _, _ in options}
    if not given <= {"loose", "validmark", "accept-local", "invert"}:
        raise NotUnderstood(f"--{', --'.join(sorted(given))}")
    loose, validmark, accept_local = "loose" in given, "validmark" in given, "accept-local" in given
    invert = "invert" in given

    def holds(view: PacketView) -> Truth:
        if view.in_dev == "lo":
            return not invert
        found = view.context.facts.reverse_path_ok(
            view.packet, view.in_dev, loose=loose, validmark=validmark, accept_local=accept_local
        )
        return found != invert

    return holds


def mac(options: Options, _: int) -> Condition:
    """`-m mac`: never holds for a packet without an Ethernet header, negated or not."""
    (option,) = options
    if option[0] not in ("mac-source", "mac"):
        raise NotUnderstood(f"--{option[0]}")
    wanted, negate = only(option).lower(), option[1]
    return lambda view: view.context.mac != "" and (view.context.mac.lower() == wanted) != negate


def pkttype(options: Options, _: int) -> Condition:
    """`-m pkttype`: what the frame was addressed to; packets of this host count as unicast."""
    (option,) = options
    wanted, negate = only(option).lower(), option[1]
    wanted = {"host": "unicast", "mcast": "multicast", "bcast": "broadcast"}.get(wanted, wanted)
    if wanted not in ("unicast", "multicast", "broadcast"):
        raise NotUnderstood(f"--pkt-type {wanted}")
    return lambda view: (_packet_type(view) == wanted) != negate


def _packet_type(view: PacketView) -> str:
    if view.context.hook == Hook.OUTPUT:
        return "unicast"
    if is_multicast(view.packet.dst):
        return "multicast"
    return "broadcast" if view.context.facts.address_type(view.packet.dst, None) == "BROADCAST" else "unicast"


def policy(options: Options, _: int) -> Condition:
    """`-m policy`: without IPsec `--pol none` holds and `--pol ipsec` does not; noted as assumed."""
    wanted = next((only(option) for option in options if option[0] == "pol"), "")
    if wanted not in ("none", "ipsec"):
        raise NotUnderstood("a policy that is neither none nor ipsec")
    answer = Chance(1.0 if wanted == "none" else 0.0, assumed=(NO_IPSEC,))
    return lambda _: answer


def ipvs(options: Options, known_services: int | None) -> Condition:
    """`-m ipvs`: no packet belongs to IPVS where it has no service. `known_services` is None if not collected."""
    if known_services != 0:
        return lambda _: unknown("which packets belong to IPVS connections")
    if [name for name, _, _ in options] == ["ipvs"]:
        negate = options[0][1]
        return lambda _: negate
    return lambda _: False


def nothing_to_ask(_: Options, __: int) -> Condition:
    """Match that always holds and only counts or remarks (comment, nfacct)."""
    return lambda _: True


def cgroup(_: Options, __: int) -> Condition:
    """`-m cgroup`: which control group sent it; packets of others have none."""
    return lambda view: False if view.context.hook == Hook.FORWARD else unknown("the control group of the sender")
