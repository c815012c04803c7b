"""A lab that is kept while scenario after scenario changes it: apply, collect what changed, try, put back.

Only the sections of namespaces that a change touched are collected again, by the product's own readers; the rest is what was
collected when the lab was built. After each scenario the namespaces touched must look as they did before, else the lab is
built anew.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace as changed
from pathlib import Path
from types import SimpleNamespace

from msgspec.structs import replace
from pyroute2 import IPRoute

from lab import rtnl
from lab.build import quick_neighbours, wait_ready
from lab.cluster import Lab
from lab.errors import LabFailed
from lab.netns import Netns, write_sysctl
from lab.plan import Backend, Kind, Listener
from lab.prober import Ask, Attempt, attempt_all
from lab.snapshot import RTM_GETADDR, RTM_GETNEIGH, RTM_GETROUTE, Snapshot
from tasks.skoop.collect import namespace as collected
from tasks.skoop.collect.packetfilter import read_ipsets, read_packet_filter
from tasks.skoop.collect.settings import read_settings
from tasks.skoop.collect.topology import collect_topology
from tasks.skoop.diagnostor import Diagnostor
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.state import NetNS
from tasks.skoop.netstack.namespace import Namespace
from tests.kernel.fuzz.change import (
    LINKS,
    NEIGHBOURS,
    PORTS,
    ROUTES,
    ROUTING,
    SETS,
    SOCKETS,
    SYSCTLS,
    TABLES,
    Change,
    Edit,
    Rules,
)

RTM_GETRULE = 34
BUILT_IN = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}


class World:
    """One lab with what was collected from it when it was whole."""

    def __init__(self, kind: Kind, backend: Backend, *, nodes: int = 2) -> None:
        self.lab = Lab(kind, nodes=nodes, backend=backend, families=(4,))
        self.lab.up()
        self.refused: list[str] = []
        self._listeners: dict[str, list[Listener]] = {}
        self._quiet()
        self.lab.forget()
        state = collect_topology(self.lab.topology)
        self.base = replace(state, netns={name: _settled(netns) for name, netns in state.netns.items()})
        self.compiled: dict[NetnsId, Namespace] = {}
        self.rules = {
            name: {str(tool): self._saved(netns, tool) for tool in Backend}
            for name, netns in self.lab.spaces.items()
            if name.startswith("node/")
        }
        self._netlink: dict[str, IPRoute] = {}
        self._prints = {name: _fingerprint(netns) for name, netns in self.lab.spaces.items()}
        self._snapshots = {name: Snapshot(netns) for name, netns in self.lab.spaces.items()}

    def _saved(self, netns: Netns, backend: Backend) -> str:
        if backend != self.lab.plan.backend:
            return ""
        return netns.run([f"iptables-{backend}-save"])

    def _quiet(self) -> None:
        """Answer proxied ARP at once instead of after up to 0.8 s, so that a verdict does not hang on patience."""
        for netns in self.lab.spaces.values():
            with netns.inside():
                for entry in Path("/proc/sys/net/ipv4/neigh").iterdir():
                    if entry.name != "default":
                        write_sysctl(f"ipv4/neigh/{entry.name}/proxy_delay", 0)

    def close(self) -> None:
        """Take the lab down."""
        for netlink in self._netlink.values():
            netlink.close()
        self.lab.down()

    # --- change ------------------------------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change | Edit]) -> Diagnostor:
        """Make the changes and return a diagnostor that has collected what they made of the lab."""
        self.refused = []
        for change in changes:
            if isinstance(change, Change):
                self._run(change.netns, change.do)
        for netns, backend in _edited(changes):
            rules = Rules(self.rules.get(netns, {}).get(backend, ""))
            for edit in changes:
                if isinstance(edit, Edit) and (edit.netns, edit.backend) == (netns, backend):
                    rules.apply(edit)
            self._restore(netns, backend, rules.render())
        if any(LINKS in touched for touched in self._touched(changes).values()):
            time.sleep(0.02)  # the kernel tells bridges and peers about a link in the background (linkwatch)
        self.lab.forget()
        return self._collect(changes)

    def undo(self, changes: Sequence[Change | Edit]) -> bool:
        """Put everything back; say whether the lab is as it was."""
        for change in reversed(changes):
            if isinstance(change, Change):
                self._run(change.netns, change.undo)
        for netns, backend in _edited(changes):
            self._empty(netns, backend, changes)
        whole = True
        for name, touched in self._touched(changes).items():
            netns = self.lab.spaces[name]
            if SETS in touched:  # only now does no rule speak of them any more
                netns.run(["ipset", "destroy"])
            if touched & ROUTING:
                self._snapshots[name].put_back()
                wait_ready({name: netns})
            if touched & {LINKS, SYSCTLS}:
                whole = self._settings_back(name) and whole
            if LINKS in touched:
                quick_neighbours(netns)
            if touched & ROUTING and _fingerprint(netns) != self._prints[name]:
                whole = False
        return whole

    def _run(self, name: str, lines: Sequence[str]) -> None:
        netns = self.lab.spaces[name]
        for line in lines:
            verb, _, rest = line.partition(" ")
            try:
                if verb == "sysctl":
                    key, _, value = rest.partition("=")
                    netns.sysctl(key.removeprefix("net/"), value)
                elif verb in ("close", "listen"):
                    self._socket(netns, verb, rest.split())
                elif verb == "ipset":
                    netns.run(["ipset", "restore"], rest.replace(" | ", "\n") + "\n")
                elif verb == "nft":
                    netns.run(["nft", "-f", "-"], rest + "\n")
                else:
                    netns.run(line.split())
            except (LabFailed, OSError) as error:
                self.refused.append(f"{name}: {line}: {error}")

    def _socket(self, netns: Netns, verb: str, words: list[str]) -> None:
        protocol, port, *address = words
        if verb == "close":
            self.lab.servers.close_listener(netns.name, protocol, int(port))
        else:
            listener = Listener(protocol=protocol, port=int(port), address=address[0] if address else "")
            self.lab.servers.listen(netns, listener, self.lab.plan.families)

    def _restore(self, netns: str, backend: str, text: str) -> None:
        try:
            self.lab.spaces[netns].run([f"iptables-{backend}-restore"], text, lock=self.lab.lock)
        except LabFailed as error:
            lines = text.splitlines()
            at = [int(word.rstrip(":.")) for word in str(error).split() if word.rstrip(":.").isdigit()]
            shown = lines[at[0] - 1] if at and 0 < at[0] <= len(lines) else ""
            self.refused.append(f"{netns}: restore: {error}: {shown}")

    def _empty(self, netns: str, backend: str, changes: Sequence[Change | Edit]) -> None:
        """Put the rules of one back end back to what they were: those of the lab, else none."""
        base = Rules(self.rules.get(netns, {}).get(backend, ""))
        used = {
            edit.table for edit in changes if isinstance(edit, Edit) and (edit.netns, edit.backend) == (netns, backend)
        }
        added = [table for table in BUILT_IN if table in used and table not in base.chains]
        if backend == "nft":
            for table in added:
                self._run(netns, (f"nft delete table ip {table}",))
            added = []
        for table in added:
            base.chains[table] = {chain: [] for chain in BUILT_IN[table]}
            base.policies |= {(table, chain): "ACCEPT" for chain in BUILT_IN[table]}
        if base.chains:
            self._restore(netns, backend, base.render())

    def _settings_back(self, name: str) -> bool:
        before = self.base.netns[NetnsId(name)].sysctls
        netns = self.lab.spaces[name]
        for _ in range(3):
            with netns.inside():
                now = read_settings()
                wrong = sorted((key for key, value in before.items() if now.get(key, value) != value), key=_wide_first)
                for key in wrong:
                    if "nf_conntrack" not in key:
                        write_sysctl(key.removeprefix("net/"), before[key])
            if not [key for key in wrong if "nf_conntrack" not in key]:
                return True
        return False

    # --- collect -----------------------------------------------------------------------------------------------------

    def _touched(self, changes: Sequence[Change | Edit]) -> dict[str, set[str]]:
        """Return namespace → sections that changed; a link's other end feels it too."""
        found: dict[str, set[str]] = {}
        for change in changes:
            parts = {TABLES} if isinstance(change, Edit) else set(change.touches)
            found.setdefault(change.netns, set()).update(parts)
            if LINKS in parts:
                for link in self.base.netns[NetnsId(change.netns)].interfaces:
                    if link.peer is not None and any(
                        link.name in line for line in (change.do if isinstance(change, Change) else ())
                    ):
                        found.setdefault(link.peer[0], set()).add(LINKS)
        return found

    def _collect(self, changes: Sequence[Change | Edit]) -> Diagnostor:
        netns = dict(self.base.netns)
        for name, parts in self._touched(changes).items():
            key = NetnsId(name)
            netns[key] = self._again(netns[key], parts)
        diagnostor = Diagnostor(SimpleNamespace(state=replace(self.base, netns=netns)), repeats_syn=False)
        self._share(diagnostor, {name for name in netns if netns[name] is self.base.netns[name]})
        return diagnostor

    def _share(self, diagnostor: Diagnostor, same: set[NetnsId]) -> None:
        """Let the namespaces that nothing has changed be those compiled before; they only get a new wire."""
        cabling = diagnostor.nodes.cabling
        for name in same:
            if name not in self.compiled:
                self.compiled[name] = Namespace(self.base.netns[name], cabling)
            self.compiled[name].wire = cabling
            cabling._namespaces[name] = self.compiled[name]

    def _again(self, before: NetNS, parts: set[str]) -> NetNS:
        netns = self.lab.spaces[before.id]
        now = before
        if parts & ROUTING:
            now = self._links_again(netns, now, parts)
        with netns.inside():
            if parts & {LINKS, SYSCTLS}:
                now = replace(now, sysctls=read_settings())
            if TABLES in parts:
                said: list[str] = []
                tables, nft = read_packet_filter(said.append, said.append)
                if said:
                    raise LabFailed("collecting rules", "; ".join(said))
                now = replace(now, tables=tables, nft=nft)
            if SETS in parts:
                now = replace(now, ipsets=read_ipsets())
            if SOCKETS in parts:
                names = {link.index: link.name for link in now.interfaces}
                now = replace(now, sockets=collected._sockets(names, ()))
        return now

    def _links_again(self, netns: Netns, before: NetNS, parts: set[str]) -> NetNS:
        """Read links, addresses, routes, rules, neighbours and forwarding entries again."""
        if netns.name not in self._netlink:
            with netns.inside():
                self._netlink[netns.name] = IPRoute()
        netlink = self._netlink[netns.name]
        now = before
        if parts & {LINKS, PORTS}:
            peers = {link.name: link.peer for link in before.interfaces}
            links = (replace(link, peer=peers.get(link.name)) for link in collected._interfaces(netlink))
            now = replace(now, interfaces=tuple(links))
        names = {link.index: link.name for link in now.interfaces}
        if parts & {LINKS, PORTS, ROUTES}:
            now = replace(now, routes=collected._routes(netlink, names, []), rules=collected._rules(netlink))
        if parts & {LINKS, NEIGHBOURS}:
            with netns.inside():
                now = replace(now, neighbours=collected._neighbours(netlink, names))
            now = replace(now, fdb=collected.rtroutes.read_fdb(collected._dump(netlink.fdb, "dump"), names))
        return now

    # --- try ---------------------------------------------------------------------------------------------------------

    def attempt(self, asks: Sequence[Ask], timeout_s: float) -> list[Attempt]:
        """Try everything at once."""
        return attempt_all([changed(ask, timeout_s=timeout_s) for ask in asks], self.lab.spaces, self.lab.servers)


def _wide_first(key: str) -> tuple[int, str]:
    """Settings that the kernel copies to others come before those."""
    return (0 if key.endswith("ip_forward") else 1 if "/all/" in key else 2, key)


def _settled(netns: NetNS) -> NetNS:
    """Forget what was only passing when it was collected."""
    return replace(netns, conntrack=(), route_exceptions=())


def _edited(changes: Iterable[Change | Edit]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((one.netns, one.backend) for one in changes if isinstance(one, Edit)))


def _fingerprint(netns: Netns) -> frozenset[bytes]:
    """Return what identifies links, addresses, routes, rules and fixed neighbours, without counters and timers."""
    found: set[bytes] = set()
    for body in netns.rtnl.dump(rtnl.RTM_GETLINK, rtnl.ifinfo()):
        kept = [value for kind, value in rtnl.attributes(body[16:]) if kind in (3, 4, 10, 1)]
        slave = dict(rtnl.attributes(dict(rtnl.attributes(body[16:])).get(18, b""))).get(5, b"")
        flags = [bytes([kind]) + value for kind, value in rtnl.attributes(slave) if kind in (1, 4, 8, 9, 27, 33)]
        found.add(b"link" + body[4:8] + bytes([body[8] & 1]) + b"|".join(kept + flags))
    for body in netns.rtnl.dump(RTM_GETADDR, bytes(8)):
        found.add(b"addr" + body[:3] + b"|".join(value for kind, value in rtnl.attributes(body[8:]) if kind in (1, 2)))
    for family in (2, 10):
        head = bytes([family]) + bytes(11)
        for body in netns.rtnl.dump(RTM_GETROUTE, head):
            wanted = [value for kind, value in rtnl.attributes(body[12:]) if kind in (1, 4, 5, 6, 7, 8, 9, 15)]
            found.add(b"route" + body[:8] + b"|".join(wanted))
    for body in netns.rtnl.dump(RTM_GETRULE, bytes([2]) + bytes(11)):
        found.add(b"rule" + body)
    for family in (2, rtnl.AF_BRIDGE):
        for body in netns.rtnl.dump(RTM_GETNEIGH, bytes([family]) + bytes(11)):
            if int.from_bytes(body[8:10], "little") & rtnl.NUD_PERMANENT:
                wanted = [value for kind, value in rtnl.attributes(body[12:]) if kind in (1, 2)]
                found.add(b"neigh" + body[:8] + body[10:12] + b"|".join(wanted))
    return frozenset(found)
