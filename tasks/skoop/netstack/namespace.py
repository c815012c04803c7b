"""One network namespace, compiled: the questions that the walk asks of it, answered quickly.

Holds no state of a walk. Sysctl combination rules (all/interface by AND, OR or maximum) are those of IN_DEV_* in
include/linux/inetdevice.h. Tables of the packet filter are compiled on first use.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING
from typing import Protocol as Contract

from msgspec import Struct

from tasks.skoop.model.addr import Ip, Mac, ip_version, is_multicast
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.packet import Packet, Protocol
from tasks.skoop.model.state import FdbEntry, Interface, Neighbour, NeighbourState, NetNS, Section, Socket
from tasks.skoop.model.trace import Place, Stage, Step
from tasks.skoop.netstack.conntrack import Known
from tasks.skoop.netstack.fib import FlowKey, Router, select_source
from tasks.skoop.netstack.nftables.compile import BaseChains, compile_chains
from tasks.skoop.netstack.xtables.api import CompiledTables, Hook
from tasks.skoop.netstack.xtables.compile import compile_tables

if TYPE_CHECKING:
    from tasks.skoop.netstack.netfilter import Op


class Answers(Struct, frozen=True, gc=False, kw_only=True):
    """Who answers a request for an address: no MAC, one, or several (an address that two hosts have); `by` which devices.

    `outside`: the link leads to where nothing was collected, so that somebody there may answer. `stopped` are the steps by
    which the packet filter stopped the question or an answer (neighbour discovery is IPv6 traffic like any other). `missing` is
    what would have to be known of those who heard the question and may have answered.
    """

    macs: tuple[Mac, ...] = ()
    by: tuple[tuple[NetnsId, str], ...] = ()
    outside: bool = False
    stopped: tuple[Step, ...] = ()
    missing: tuple[str, ...] = ()


class Wire(Contract):
    """What lies beyond the devices of a namespace: the walk asks it, the cluster answers."""

    def resolve(self, netns: NetnsId, dev: str, target: Ip, sender: Ip | None) -> "Answers":
        """Ask for the link-layer address of `target` on the link of `dev` (ARP, neighbour discovery)."""

    def reaches(self, netns: NetnsId, dev: str, mac: Mac, vlan: int = 0) -> bool:
        """Say whether a frame sent out of `dev` can find a device with that address."""

    def vteps(self, netns: NetnsId, dev: str, mac: Mac) -> tuple[Ip, ...]:
        """Return the far ends of a vxlan device behind which there is a device with that address."""

    def l3s_above(self, netns: NetnsId, dev: str, ip: Ip) -> tuple[NetnsId, str] | None:
        """Return the ipvlan device of mode l3s on `dev` that carries the address."""


ESSENTIAL = (Section.LINKS, Section.ROUTES, Section.RULES, Section.SYSCTLS, Section.NFT)
"""Sections without which nothing can be said of a packet in the namespace; others are asked for where they decide."""


class Namespace:
    """A compiled NetNS."""

    def __init__(self, state: NetNS, wire: Wire) -> None:
        self.id = state.id
        self.state = state
        self.wire = wire
        self.links: dict[str, Interface] = {link.name: link for link in state.interfaces}
        self.ports: dict[str, tuple[Interface, ...]] = {}
        for link in state.interfaces:
            if link.master:
                self.ports[link.master] = (*self.ports.get(link.master, ()), link)
        self.neighbours: dict[tuple[str, str], Neighbour] = {
            (entry.dev, entry.ip): entry for entry in state.neighbours if not entry.proxy
        }
        self.proxied: frozenset[tuple[str, str]] = frozenset(
            (entry.dev, entry.ip) for entry in state.neighbours if entry.proxy
        )
        self.known = Known(state)
        self._plans: dict[tuple[int, Hook], tuple[Op, ...]] = {}
        self._places: dict[tuple[Stage, str, str], Place] = {}
        self._conf: dict[tuple[str, str, int, int], int] = {}
        self._vrfs = frozenset(link.name for link in state.interfaces if link.vrf_table is not None)
        self._highest: dict[tuple[str, str], int] = {}
        self._either: dict[tuple[str, str], bool] = {}
        self._own = frozenset(address.ip for link in state.interfaces for address in link.addresses)
        self._calls_iptables: dict[tuple[str, int], bool] = {}
        self._linkdown = frozenset(
            (4, name) for name in self.links if self.either("ignore_routes_with_linkdown", name)
        ) | {(6, name) for name in self.links if self.conf("ignore_routes_with_linkdown", name, family=6)}
        self.routers = {
            4: Router(4, state.routes, state.rules, state.interfaces),
            6: Router(6, state.routes, state.rules, state.interfaces, avoided=self._silent_routers()),
        }
        self._path_mtu = {(entry.dst, entry.dev or ""): entry.mtu for entry in state.route_exceptions if entry.mtu}

    # --- packet filter -------------------------------------------------------------------------------------------

    @cached_property
    def tables(self) -> CompiledTables:
        """The packet filter's tables."""
        return compile_tables(self.state)

    @cached_property
    def base_chains(self) -> BaseChains:
        """The base chains of native nftables tables."""
        return compile_chains(self.state)

    def plan(self, family: int, hook: Hook) -> "tuple[Op, ...]":
        """Return what runs at a hook, in order (made once by `netfilter.plan`)."""
        slot = (family, hook)
        found = self._plans.get(slot)
        if found is None:
            from tasks.skoop.netstack.netfilter import plan

            found = self._plans[slot] = plan(self, family, hook)
        return found

    def tracks(self, family: int) -> bool:
        """Say whether the kernel tracks connections here at all (only if some rule needs it; docs/kernel.md)."""
        return self.tables.needs_conntrack.get(family, False)

    # --- gaps ----------------------------------------------------------------------------------------------------

    def gap(self, *sections: Section) -> str | None:
        """Return which of the sections (by default the essential ones) is missing and why, or None if all are there."""
        if not self.state.missing:
            return None
        for section in sections or ESSENTIAL:
            if (why := self.state.lacks(section)) is not None:
                return f"{self.id}: {section} ({why})"
        return None

    # --- places --------------------------------------------------------------------------------------------------

    def place(self, stage: Stage, *, dev: str = "", key: str = "") -> Place:
        """Return the place of that name in this namespace."""
        slot = (stage, dev, key)
        found = self._places.get(slot)
        if found is None:
            found = self._places[slot] = Place(netns=self.id, stage=stage, dev=dev, key=key)
        return found

    # --- sysctls -------------------------------------------------------------------------------------------------

    def sysctl(self, key: str, default: int = 0) -> int:
        """Return a sysctl as a number, or the kernel's default where it was not collected."""
        try:
            return int(self.state.sysctls.get(key, default))
        except ValueError:
            return default

    def conf(self, name: str, dev: str, default: int = 0, family: int = 4) -> int:
        """Return net.ipv4.conf.<dev>.<name> (or its IPv6 sister)."""
        slot = (name, dev, default, family)
        found = self._conf.get(slot)
        if found is None:
            found = self._conf[slot] = self.sysctl(f"net/ipv{family}/conf/{dev}/{name}", default)
        return found

    def either(self, name: str, dev: str) -> bool:
        """Return all OR interface (IN_DEV_ORCONF)."""
        slot = (name, dev)
        found = self._either.get(slot)
        if found is None:
            found = self._either[slot] = bool(self.conf(name, "all") or self.conf(name, dev))
        return found

    def highest(self, name: str, dev: str) -> int:
        """Return max(all, interface) (IN_DEV_MAXCONF)."""
        slot = (name, dev)
        found = self._highest.get(slot)
        if found is None:
            found = self._highest[slot] = max(self.conf(name, "all"), self.conf(name, dev))
        return found

    def reflected_mark(self, packet: Packet) -> int:
        """Return the mark of what the kernel itself answers to a packet (IP4_REPLY_MARK, IP6_REPLY_MARK)."""
        return packet.mark if self.sysctl(f"net/ipv{packet.version}/fwmark_reflect") else 0

    def first_ttl(self, version: int, dev: str) -> int:
        """Return the TTL or hop limit with which the namespace sends by a device (ip4_dst_hoplimit, ip6_dst_hoplimit)."""
        if version == 4:
            return self.sysctl("net/ipv4/ip_default_ttl", 64)
        return self.conf("hop_limit", dev, 64, family=6)

    def forwards(self, dev: str, family: int) -> bool:
        """Say whether packets that came in on the device may be forwarded (docs/kernel.md, Routes; IPv6)."""
        if family == 6:
            return bool(self.sysctl("net/ipv6/conf/all/forwarding") or self.conf("force_forwarding", dev, family=6))
        return bool(self.conf("forwarding", dev, self.sysctl("net/ipv4/ip_forward")))

    def bridge_calls_iptables(self, bridge: str, family: int) -> bool:
        """Say whether bridged packets of the family see iptables: br_netfilter's sysctl, or the bridge's own switch."""
        slot = (bridge, family)
        found = self._calls_iptables.get(slot)
        if found is None:
            link = self.links.get(bridge)
            own = link.bridge if link else None
            if family == 6:
                found = bool(self.sysctl("net/bridge/bridge-nf-call-ip6tables") or (own and own.nf_call_ip6tables))
            else:
                found = bool(self.sysctl("net/bridge/bridge-nf-call-iptables") or (own and own.nf_call_iptables))
            self._calls_iptables[slot] = found
        return found

    # --- routes and addresses ------------------------------------------------------------------------------------

    @property
    def ignore_linkdown(self) -> frozenset[tuple[int, str]]:
        """Devices, by family, whose routes do not count while the link is down (IPv6 has no `all` here: ip6_ignore_linkdown)."""
        return self._linkdown

    def _silent_routers(self) -> frozenset[tuple[str, Ip]]:
        """Return the IPv6 neighbours that have not answered: a host that does not forward avoids them as routers."""
        if self.sysctl("net/ipv6/conf/all/forwarding"):
            return frozenset()
        return frozenset(
            (entry.dev, entry.ip)
            for entry in self.state.neighbours
            if entry.state == NeighbourState.FAILED and ":" in entry.ip
        )

    def source_for(self, dev: str, towards: Ip, scope: str = "link") -> Ip | None:
        """Return the address with which the namespace sends by a device towards an address (`select_source`)."""
        localnet = ":" not in towards and self.either("route_localnet", dev)
        return select_source(self.state.interfaces, dev, towards, scope, conf=self._conf6, localnet=localnet)

    def _conf6(self, name: str, dev: str) -> int:
        return self.conf(name, dev, family=6)

    def router(self, family: int) -> Router:
        """Return the routes of a family."""
        return self.routers[family]

    def is_local(self, ip: Ip) -> bool:
        """Say whether the address is one of the namespace's own."""
        return self.routers[ip_version(ip)].local_types(ip) == "local"

    def is_vrf(self, dev: str) -> bool:
        """Say whether the device is a VRF."""
        return dev in self._vrfs

    def vrf_of(self, dev: str) -> str:
        """Return the VRF that the device is enslaved to, "" for none."""
        if not self._vrfs:
            return ""
        link = self.links.get(dev)
        return link.master if link and link.master and self.is_vrf(link.master) else ""

    def is_local_on(self, ip: Ip, dev: str) -> bool:
        """Say whether the address is the namespace's own for what comes in by the device: its VRF has its own addresses."""
        if not self.vrf_of(dev):
            return self.is_local(ip)
        found = self.routers[ip_version(ip)].lookup(FlowKey(dst=ip, iif=dev))
        return found is not None and found.type == "local"

    def has_address(self, ip: Ip) -> bool:
        """Say whether some device carries the address (inet_lookup_ifaddr_rcu)."""
        return ip in self._own

    def address_type(self, ip: Ip, dev: str | None) -> str:
        """Return the kernel's type of an address (inet_addr_type_table, inet_dev_addr_type)."""
        if ip in ("0.0.0.0", "::"):
            return "UNSPEC" if ip == "::" else "BROADCAST"
        if ip == "255.255.255.255":
            return "BROADCAST"
        if is_multicast(ip):
            return "MULTICAST"
        router = self.routers[ip_version(ip)]
        kind = router.local_types(ip)
        if kind is None:
            return "UNICAST"
        if kind == "local" and dev and dev not in router.local_devs(ip):
            return "UNICAST"
        return kind.upper()

    def reverse_path_ok(self, packet: Packet, dev: str, *, loose: bool, validmark: bool, accept_local: bool) -> bool:
        """Return what `-m rpfilter` finds (rpfilter_lookup_reverse, net/ipv4/netfilter/ipt_rpfilter.c)."""
        key = FlowKey(dst=packet.src, src=packet.dst, mark=packet.mark if validmark else 0, protocol=packet.protocol)
        found = self.routers[packet.version].lookup(key)
        if found is None or found.errno:
            return False
        if found.type != "unicast" and not (found.type == "local" and accept_local):
            return False
        return loose or any(leg.dev == dev for leg in found.legs)

    # --- sockets -------------------------------------------------------------------------------------------------

    @cached_property
    def listeners(self) -> dict[tuple[str, int], tuple[Socket, ...]]:
        """Sockets that can take a first packet, by protocol and port."""
        index: dict[tuple[str, int], tuple[Socket, ...]] = {}
        for socket in self.state.sockets:
            if socket.peer_port == 0:
                slot = (str(socket.protocol), socket.port)
                index[slot] = (*index.get(slot, ()), socket)
        return index

    def listener(self, packet: Packet, dev: str, slave: str = "") -> Socket | None:
        """Return the socket that takes a packet to a local address, or None (compute_score, inet_hashtables.c, udp.c).

        `slave` is the device below the VRF `dev`: sockets bound to either take the packet, others only if the sysctl
        tcp_l3mdev_accept (udp_…) lets them (inet_bound_dev_eq).
        """
        return next(iter(self.sharers(packet, dev, slave)), None)

    def sharers(self, packet: Packet, dev: str, slave: str = "") -> tuple[Socket, ...]:
        """Return the sockets one of which takes the packet: several where they share address and port (SO_REUSEPORT)."""
        best: list[Socket] = []
        most = 0
        everywhere = not slave or bool(self.sysctl(f"net/ipv4/{packet.protocol}_l3mdev_accept"))
        for socket in self.listeners.get((str(packet.protocol), packet.dport), ()):
            if not socket.dev and not everywhere:
                continue
            score = _socket_score(socket, packet, slave if slave and socket.dev == slave else dev)
            if score >= 0 and (not best or score > most):
                best, most = [socket], score
            elif best and score == most and (socket.ip, socket.dev) == (best[0].ip, best[0].dev):
                best.append(socket)
        return tuple(best)

    def listens_to_sctp(self) -> bool:
        """Say whether SCTP sockets were collected: by sock_diag they are not, so if none is known there may be some."""
        return any(socket.protocol == Protocol.SCTP for socket in self.state.sockets)

    def has_socket(self, packet: Packet, *, transparent: bool, wildcard: bool) -> bool | None:
        """Return whether a local socket would take the packet (`-m socket`); None if sockets were not collected."""
        del transparent  # IP_TRANSPARENT is not in a dump; a listener found is the better guess
        if self.state.lacks(Section.SOCKETS):
            return None
        socket = self.listener(packet, "")
        return socket is not None and (wildcard or socket.ip not in ("0.0.0.0", "::"))

    def tproxied(self, packet: Packet, ip: Ip, port: int, dev: str) -> Packet:
        """Return the packet as TPROXY looks its socket up (nf_tproxy_laddr4): without an address by the device's first one."""
        if ip in ("0.0.0.0", "::"):
            link = self.links.get(dev)
            own = [one.ip for one in link.addresses if ip_version(one.ip) == packet.version] if link else []
            return packet.with_(dst=own[0] if own else packet.dst, dport=port)
        return packet.with_(dst=ip, dport=port)

    # --- neighbours and forwarding databases -----------------------------------------------------------------------

    def neighbour(self, dev: str, ip: Ip) -> Neighbour | None:
        """Return a usable neighbour entry: one with a link-layer address that the kernel would use as it is."""
        entry = self.neighbours.get((dev, ip))
        if entry is None or entry.mac is None:
            return None
        if entry.state in (NeighbourState.FAILED, NeighbourState.INCOMPLETE, NeighbourState.NONE):
            return None
        return entry

    @cached_property
    def bridge_fdb(self) -> dict[tuple[str, str], FdbEntry]:
        """Entries of bridges: (bridge, MAC) → entry."""
        return {(entry.master, entry.mac): entry for entry in self.state.fdb if entry.master}

    @cached_property
    def bridge_fdb_of_vlan(self) -> dict[tuple[str, str, int], FdbEntry]:
        """Entries of bridges that filter by VLAN: (bridge, MAC, VLAN) → entry."""
        return {(entry.master, entry.mac, entry.vlan or 0): entry for entry in self.state.fdb if entry.master}

    @cached_property
    def own_fdb(self) -> dict[tuple[str, str], tuple[FdbEntry, ...]]:
        """Entries of devices themselves (vxlan): (device, MAC) → entries."""
        index: dict[tuple[str, str], tuple[FdbEntry, ...]] = {}
        for entry in self.state.fdb:
            if not entry.master and entry.dst is not None:
                slot = (entry.dev, str(entry.mac))
                index[slot] = (*index.get(slot, ()), entry)
        return index

    def vxlans_on(self, port: int, version: int) -> Iterable[Interface]:
        """Yield the vxlan devices that listen on a UDP port with a socket of that IP version (vxlan_sock_add)."""
        for link in self.state.interfaces:
            vxlan = link.vxlan
            if vxlan is None or vxlan.port != port or not link.up:
                continue
            if ip_version(vxlan.local or vxlan.group or "") == version:
                yield link

    def cached_mtu(self, dst: Ip, dev: str) -> int:
        """Return the path MTU that the namespace has learnt for a destination, 0 for none."""
        return self._path_mtu.get((dst, dev), self._path_mtu.get((dst, ""), 0))


def _socket_score(socket: Socket, packet: Packet, dev: str) -> int:
    """Return how well a socket fits, -1 if not at all: a bound address or device counts more than a wildcard."""
    score = 0
    if socket.dev:
        if socket.dev != dev:
            return -1
        score += 4
    if socket.ip == packet.dst:
        return score + 2
    if socket.ip == "::":
        fits = packet.version == 6 or not socket.v6only
    else:
        fits = socket.ip == "0.0.0.0" and packet.version == 4
    if not fits:
        return -1
    return score + (1 if (socket.ip == "::") == (packet.version == 6) else 0)
