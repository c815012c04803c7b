"""A lab that is kept while scenario after scenario changes it: apply, collect what changed, try, put back.

Only the sections of namespaces that a change touched are collected again, by the product's own readers; the rest is what was
collected when the lab was built. After each scenario the namespaces touched must look as they did before, else the lab is
built anew.
"""

import re
import struct
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace as changed
from itertools import groupby, zip_longest
from pathlib import Path
from types import SimpleNamespace

from msgspec.structs import replace

from lab import rtnl
from lab.build import quick_neighbours, wait_ready
from lab.cluster import Lab
from lab.errors import LabFailed
from lab.netns import Netns, write_sysctl
from lab.plan import Backend, Listener
from lab.prober import Ask, Attempt, attempt_all
from lab.snapshot import RTM_GETADDR, RTM_GETNEIGH, RTM_GETROUTE, Snapshot
from tasks.skoop.collect.settings import read_settings
from tasks.skoop.collect.topology import collect_topology
from tasks.skoop.diagnostor import Diagnostor
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.state import NetNS
from tasks.skoop.netstack.namespace import Namespace
from tests.kernel.fuzz.change import LINKS, ROUTING, SETS, Change, Edit, Rules
from tests.kernel.fuzz.generator import LabKind
from tests.kernel.fuzz.reading import RTM_GETRULE, read_again

FLUSH_S = 5.0
_BATCHED = {"ip": ("ip",), "ip4": ("ip", "-4"), "ip6": ("ip", "-6"), "bridge": ("bridge",)}
BUILT_IN = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}


class World:
    """One lab with what was collected from it when it was whole."""

    def __init__(self, kind: LabKind) -> None:
        self.lab = Lab(kind.kind, nodes=kind.nodes, backend=kind.backend, families=kind.families)
        self.lab.up()
        self.refused: list[str] = []
        self.cut = False
        self._listeners: dict[str, list[Listener]] = {}
        self._quiet()
        self.forget()
        state = collect_topology(self.lab.topology)
        self.base = replace(state, netns={name: _settled(netns) for name, netns in state.netns.items()})
        self.compiled: dict[NetnsId, Namespace] = {}
        self.rules = {
            name: {
                f"{tool}{'' if family == 4 else family}": self._saved(netns, tool, family)
                for tool in Backend
                for family in kind.families
            }
            for name, netns in self.lab.spaces.items()
            if name.startswith("node/")
        }
        self._prints = {name: _fingerprint(netns) for name, netns in self.lab.spaces.items()}
        self._snapshots = {name: Snapshot(netns) for name, netns in self.lab.spaces.items()}

    def _saved(self, netns: Netns, backend: Backend, family: int) -> str:
        if backend != self.lab.plan.backend:
            return ""
        return netns.run([f"ip{'' if family == 4 else family}tables-{backend}-save"])

    def _quiet(self) -> None:
        """Answer proxied ARP at once instead of after up to 0.8 s, so that a verdict does not hang on patience."""
        for netns in self.lab.spaces.values():
            with netns.inside():
                for entry in Path("/proc/sys/net").glob("ipv[46]/neigh/*"):
                    if entry.name != "default":
                        write_sysctl(f"{entry.parts[4]}/neigh/{entry.name}/proxy_delay", 0)

    def close(self) -> None:
        """Take the lab down."""
        self.lab.down()

    # --- change ------------------------------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change | Edit]) -> Diagnostor:
        """Make the changes and return a diagnostor that has collected what they made of the lab."""
        self.refused = []
        self._do((change.netns, change.do) for change in changes if isinstance(change, Change))
        for (netns, backend), tables in _edited(changes).items():
            rules = Rules(self.rules.get(netns, {}).get(backend, ""))
            for edit in changes:
                if isinstance(edit, Edit) and (edit.netns, edit.backend) == (netns, backend):
                    rules.apply(edit)
            self._restore(netns, backend, rules.render(tables))
        if any(LINKS in touched for touched in self._touched(changes).values()):
            time.sleep(0.02)  # the kernel tells bridges and peers about a link in the background (linkwatch)
        self.forget()
        return self._collect(changes)

    def undo(self, changes: Sequence[Change | Edit]) -> bool:
        """Put everything back; say whether the lab is as it was."""
        self._do((change.netns, change.undo) for change in reversed(changes) if isinstance(change, Change))
        for (place, backend), tables in _edited(changes).items():
            self._empty(place, backend, tables)
        written = _written(changes)
        whole = True
        for name, touched in self._touched(changes).items():
            netns = self.lab.spaces[name]
            if SETS in touched:  # only now does no rule speak of them any more
                netns.run(["ipset", "destroy"])
            if touched & ROUTING:
                self._snapshots[name].put_back()
                wait_ready({name: netns})
            if name in written:
                whole = self._settings_back(name, written[name]) and whole
            if LINKS in touched:
                quick_neighbours(netns)
            if touched & ROUTING and _fingerprint(netns) != self._prints[name]:
                whole = False
        return whole

    def forget(self) -> None:
        """Forget what earlier tries left. Raises LabFailed if a packet that circulates for ever keeps making connections.

        The kernel's flush then never ends, and holds a lock of the whole host: every device is taken down, which stops it.
        """
        alarm = threading.Timer(FLUSH_S, self._cut)
        alarm.start()
        try:
            self.lab.forget()
        finally:
            alarm.cancel()
            alarm.join()
        if self.cut:
            raise LabFailed("forgetting connections", f"did not end in {FLUSH_S} s: a packet circulates for ever")

    def _cut(self) -> None:
        """Take every device down, so that a flush of connections that new ones keep busy comes to its end."""
        self.cut = True
        for netns in self.lab.spaces.values():
            with netns.inside():
                netlink = rtnl.Rtnl()
            for body in list(netlink.dump(rtnl.RTM_GETLINK, rtnl.ifinfo())):
                (index,) = struct.unpack_from("=i", body, 4)
                netlink.queue(rtnl.RTM_SETLINK, struct.pack("=BxHiII", 0, 0, index, 0, rtnl.IFF_UP), 0, "cut")
            netlink.flush()
            netlink.close()

    def _do(self, groups: Iterable[tuple[str, Sequence[str]]]) -> None:
        """Do the lines of each namespace in order; neighbouring lines for `ip` by one process."""
        lines = [(name, line) for name, group in groups for line in group]
        for (name, verb), run in groupby(lines, key=lambda one: (one[0], one[1].partition(" ")[0])):
            rests = [line.partition(" ")[2] for _, line in run]
            if verb in _BATCHED:
                self._batch(name, verb, rests)
                continue
            for rest in rests:
                self._one(name, verb, rest)

    def _batch(self, name: str, tool: str, lines: Sequence[str]) -> None:
        try:
            self.lab.spaces[name].run([*_BATCHED[tool], "-force", "-batch", "-"], "\n".join((*lines, "")))
        except LabFailed as error:
            refused = [int(number) - 1 for number in re.findall(r"Command failed -:(\d+)", str(error))]
            said = [line for line in str(error).splitlines() if not line.startswith("Command failed")]
            for index, reason in zip_longest(refused, said, fillvalue=""):
                shown = lines[index] if isinstance(index, int) and index < len(lines) else ""
                self.refused.append(f"{name}: {tool} {shown}: {reason}")

    def _one(self, name: str, verb: str, rest: str) -> None:
        netns = self.lab.spaces[name]
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
                netns.run([verb, *rest.split()])
        except (LabFailed, OSError) as error:
            self.refused.append(f"{name}: {verb} {rest}: {error}")

    def _socket(self, netns: Netns, verb: str, words: list[str]) -> None:
        protocol, port, *address = words
        if verb == "close":
            self.lab.servers.close_listener(netns.name, protocol, int(port))
        else:
            listener = Listener(protocol=protocol, port=int(port), address=address[0] if address else "")
            self.lab.servers.listen(netns, listener, self.lab.plan.families)

    def _restore(self, netns: str, backend: str, text: str) -> None:
        program = f"ip6tables-{backend.rstrip('6')}" if backend.endswith("6") else f"iptables-{backend}"
        try:
            self.lab.spaces[netns].run([f"{program}-restore"], text, lock=self.lab.lock)
        except LabFailed as error:
            lines = text.splitlines()
            at = [int(word.rstrip(":.")) for word in str(error).split() if word.rstrip(":.").isdigit()]
            shown = lines[at[0] - 1] if at and 0 < at[0] <= len(lines) else ""
            self.refused.append(f"{netns}: restore: {error}: {shown}")

    def _empty(self, netns: str, backend: str, tables: Collection[str]) -> None:
        """Put the edited tables of one back end back to what they were: those of the lab, else none."""
        base = Rules(self.rules.get(netns, {}).get(backend, ""))
        added = [table for table in BUILT_IN if table in tables and table not in base.chains]
        if backend.startswith("nft"):
            family = "ip6" if backend.endswith("6") else "ip"
            for table in added:
                self._one(netns, "nft", f"delete table {family} {table}")
            added = []
        for table in added:
            base.chains[table] = {chain: [] for chain in BUILT_IN[table]}
            base.policies |= {(table, chain): "ACCEPT" for chain in BUILT_IN[table]}
        if text := base.render(tables):
            self._restore(netns, backend, text)

    def _settings_back(self, name: str, named: Collection[str]) -> bool:
        before = self.base.netns[NetnsId(name)].sysctls
        netns = self.lab.spaces[name]
        for _ in range(3):
            with netns.inside():
                now = read_settings(named=named)
                wrong = sorted((key for key, value in now.items() if before.get(key, value) != value), key=_wide_first)
                for key in wrong:
                    write_sysctl(key.removeprefix("net/"), before[key])
            if not wrong:
                return True
        return False

    # --- collect -----------------------------------------------------------------------------------------------------

    def _touched(self, changes: Sequence[Change | Edit]) -> dict[str, set[str]]:
        """Return namespace → sections that changed; a link's other end feels it too."""
        found: dict[str, set[str]] = {}
        for change in changes:
            parts = set() if isinstance(change, Edit) else set(change.touches)
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
        edited, written = _edited(changes), _written(changes)
        for name, parts in self._touched(changes).items():
            key = NetnsId(name)
            tables = [
                (backend, table) for (place, backend), names in edited.items() if place == name for table in names
            ]
            netns[key] = read_again(
                self.lab.spaces[name], netns[key], parts, settings=written.get(name, ()), tables=tables
            )
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


def _edited(changes: Iterable[Change | Edit]) -> dict[tuple[str, str], set[str]]:
    """Return (namespace, back end) → tables of iptables that are edited."""
    found: dict[tuple[str, str], set[str]] = {}
    for one in changes:
        if isinstance(one, Edit):
            found.setdefault((one.netns, one.backend), set()).add(one.table)
    return found


_COUPLED = frozenset(("ip_forward", "forwarding"))
"""Writing one of them writes the others (devinet_sysctl_forward, net/ipv4/devinet.c)."""


def _written(changes: Iterable[Change | Edit]) -> dict[str, set[str]]:
    """Return namespace → names of the settings that are written."""
    found: dict[str, set[str]] = {}
    for one in changes:
        for line in one.do if isinstance(one, Change) else ():
            if line.startswith("sysctl "):
                name = line.partition("=")[0].rpartition("/")[2]
                found.setdefault(one.netns, set()).update(_COUPLED if name in _COUPLED else (name,))
    return found


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
