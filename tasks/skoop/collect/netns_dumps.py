"""What a folder of dumps says about one network namespace: which file holds which section, and what a missing file means.

Files are named as in `FILES`; the first that is there is read. A file that is there and cannot be read is an error that
names it, never a gap. For a file that is not there:

- its `.err` beside it tells of a failure (anything but remarks and counts) → the section is missing, with that text;
- the section cannot be empty in a living namespace (links, routes, rules, sysctls, what nft prints) → missing;
- links and routes are there → the dump is taken to have left out what was empty: the section is empty;
- else → missing: a folder with a file or two says nothing about the rest.

The rules of IPv6 are in a file of their own that few dumps have; without it they are taken to be those that every namespace
starts with. From `ss -tanH` come connected sockets, beside the listening ones of `ss -tlnupH`.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.state import (
    Interface,
    Missing,
    NetNS,
    NftTable,
    PolicyRule,
    Route,
    Section,
    Socket,
)
from tasks.skoop.model.xtables import Backend, XTable
from tasks.skoop.parse.conntrack import parse_conntrack
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.ipset import parse_ipset_save
from tasks.skoop.parse.iptables import backend_of, parse_iptables_save
from tasks.skoop.parse.ipvs import parse_ipvsadm
from tasks.skoop.parse.links import combine, parse_addresses, parse_links, parse_ports, parse_vlans
from tasks.skoop.parse.neighbours import parse_fdb, parse_neighbours
from tasks.skoop.parse.nexthops import parse_nexthops, resolve
from tasks.skoop.parse.nft import FAMILIES, parse_nft, without_iptables
from tasks.skoop.parse.routes import DEFAULT_RULES6, locked_mtus, parse_exceptions, parse_routes, parse_rules
from tasks.skoop.parse.rtnames import read_rt_tables
from tasks.skoop.parse.sockets import parse_sockets
from tasks.skoop.parse.sysctl import parse_sysctl
from tasks.skoop.parse.wireguard import parse_wireguard

T = TypeVar("T")

LINKS = ("ip-link-d.json", "ip-link.json")
ADDRESSES = ("ip-addr.json", "ip-addr-d.json")
PORTS = ("bridge-link-d.json", "bridge-link.json")
ROUTES = ("ip-route-all.json", "ip-route.json")
ROUTES6 = ("ip-route6-all.json", "ip-route6.json")
ROUTE_TEXT = ("ip-route-all.txt", "ip-route.txt")
RULES = ("ip-rule.json",)
RULES6 = ("ip-rule6.json",)
RT_TABLES = ("rt_tables",)
LISTENING = ("ss-tlnupH.txt", "ss-tlnup.txt", "ss-tlnu.txt")
CONNECTIONS = ("ss-tanH.txt", "ss-tan.txt")
NFT = ("nft-ruleset.json", "nft.json")
SYSCTLS = ("sysctl-net.txt", "sysctl-a.txt", "sysctl.txt")
IPTABLES: Mapping[int, str] = {4: "iptables-save", 6: "ip6tables-save"}
VARIANTS: tuple[tuple[str, Backend | None], ...] = ((".legacy", Backend.LEGACY), (".nft", Backend.NFT), ("", None))
"""What a file name says between `iptables-save[-c]` and `.txt`, and the back end that it names (None: its first line does)."""

TABLES: tuple[tuple[Section, tuple[str, ...]], ...] = (
    (Section.LINKS, LINKS + ADDRESSES),
    (Section.ROUTES, ROUTES + ROUTES6),
    (Section.RULES, RULES),
    (Section.SYSCTLS, SYSCTLS),
    (Section.NFT, NFT),
    (Section.NEIGHBOURS, ("ip-neigh.json",)),
    (Section.FDB, ("bridge-fdb.json",)),
    (Section.SOCKETS, LISTENING),
    (Section.CONNTRACK, ("conntrack-L.txt",)),
    (Section.IPSETS, ("ipset-save.txt",)),
    (Section.IPVS, ("ipvsadm-Sn.txt",)),
    (Section.ROUTE_EXCEPTIONS, ("ip-route-cache.json",)),
)
"""Section → the files that it may come from, but for iptables, which has many."""

NEVER_EMPTY = frozenset((Section.LINKS, Section.ROUTES, Section.RULES, Section.SYSCTLS, Section.NFT))
REMARK = re.compile(r"#|\s*$|conntrack v\S+ \(conntrack-tools\): \d+ flow entries have been shown")
UNREAD_STATES = frozenset(("LISTEN", "TIME-WAIT", "SYN-RECV"))
"""States in `ss -tan` that say nothing new: listeners are read elsewhere, the others take no packet that conntrack would not."""


class NetnsDump(Struct, frozen=True):
    """A folder with the dumps of one namespace; `name` is how errors call it."""

    folder: Path
    name: str

    def exists(self) -> bool:
        """Say whether there is any dump of links, routes or rules in the folder."""
        wanted = (*LINKS, *ADDRESSES, *ROUTES, *ROUTES6, *(path for path, _, _ in _iptables_files(self.folder)))
        return any((self.folder / name).is_file() for name in wanted)

    def read(self, names: tuple[str, ...], parse: Callable[[str, str], T]) -> T | None:
        """Return what the first of these files that is there holds, None if none is. Raises ParseError."""
        for name in names:
            path = self.folder / name
            if path.is_file():
                return parse(_text(path, f"{self.name}/{name}"), f"{self.name}/{name}")
        return None


def load_netns(dump: NetnsDump, netns: NetnsId) -> NetNS:
    """Return the state of a namespace as its dumps tell it, with what they do not tell in `missing`. Raises ParseError."""
    tables = dump.read(RT_TABLES, lambda text, _: read_rt_tables(text)) or {}
    objects = dump.read(("ip-nexthop.json",), parse_nexthops) or ()
    nft = dump.read(NFT, parse_nft) or ()
    xtables = _xtables(dump, nft)
    return NetNS(
        id=netns,
        interfaces=_interfaces(dump),
        routes=resolve(_routes(dump, tables), objects),
        rules=_rules(dump, tables),
        neighbours=dump.read(("ip-neigh.json",), parse_neighbours) or (),
        fdb=dump.read(("bridge-fdb.json",), parse_fdb) or (),
        sockets=_sockets(dump),
        conntrack=dump.read(("conntrack-L.txt",), parse_conntrack) or (),
        sysctls=dump.read(SYSCTLS, parse_sysctl) or {},
        tables=xtables,
        nft=without_iptables(nft, xtables),
        ipsets=dump.read(("ipset-save.txt",), parse_ipset_save) or (),
        ipvs=dump.read(("ipvsadm-Sn.txt",), parse_ipvsadm) or (),
        route_exceptions=dump.read(("ip-route-cache.json",), parse_exceptions) or (),
        missing=tuple(_missing(dump)),
        nexthops=objects,
    )


def _interfaces(dump: NetnsDump) -> tuple[Interface, ...]:
    links = dump.read(LINKS, parse_links) or dump.read(ADDRESSES, parse_links) or ()
    vlans = dump.read(("bridge-vlan.json",), parse_vlans)
    devices = dump.read(("wg-show.txt",), parse_wireguard) or {}
    whole = combine(links, dump.read(ADDRESSES, parse_addresses) or {}, dump.read(PORTS, parse_ports) or {}, vlans)
    return tuple(replace(link, wireguard=devices[link.name]) if link.name in devices else link for link in whole)


def _routes(dump: NetnsDump, tables: Mapping[str, int]) -> tuple[Route, ...]:
    routes4 = dump.read(ROUTES, lambda text, name: parse_routes(text, name, family=4, tables=tables))
    routes6 = dump.read(ROUTES6, lambda text, name: parse_routes(text, name, family=6, tables=tables))
    if routes6 is None:
        routes6 = dump.read(ROUTES, lambda text, name: parse_routes(text, name, family=6, tables=tables))
    locked = dump.read(ROUTE_TEXT, lambda text, _: locked_mtus(text)) or frozenset()
    routes = (*(routes4 or ()), *(routes6 or ()))
    return tuple(replace(route, mtu_locked=True) if route.mtu and _shown(route) & locked else route for route in routes)


def _shown(route: Route) -> frozenset[str]:
    """Return how `ip route` may print the destination of a route."""
    bare = "default" if route.dst in ("0.0.0.0/0", "::/0") else route.dst.removesuffix("/32").removesuffix("/128")
    return frozenset((route.dst, bare))


def _rules(dump: NetnsDump, tables: Mapping[str, int]) -> tuple[PolicyRule, ...]:
    rules4 = dump.read(RULES, lambda text, name: parse_rules(text, name, family=4, tables=tables))
    rules6 = dump.read(RULES6, lambda text, name: parse_rules(text, name, family=6, tables=tables))
    if rules4 is None and rules6 is None:
        return ()
    return (*(rules4 or ()), *(DEFAULT_RULES6 if rules6 is None else rules6))


def _sockets(dump: NetnsDump) -> tuple[Socket, ...]:
    listening = dump.read(LISTENING, parse_sockets) or ()
    connections = dump.read(CONNECTIONS, parse_sockets) or ()
    return (*listening, *(socket for socket in connections if socket.state not in UNREAD_STATES))


def _iptables_files(folder: Path) -> list[tuple[str, int, Backend | None]]:
    """Return (name, family, back end) of each iptables dump that may be here, counters or not, in a fixed order."""
    files = []
    for variant, backend in VARIANTS:
        for family, stem in IPTABLES.items():
            names = [f"{stem}{counters}{variant}.txt" for counters in ("-c", "")]
            files.append((next((name for name in names if (folder / name).is_file()), names[0]), family, backend))
    return files


def _xtables(dump: NetnsDump, nft: tuple[NftTable, ...]) -> tuple[XTable, ...]:
    found: list[XTable] = []
    for name, family, backend in _iptables_files(dump.folder):
        path = dump.folder / name
        if not path.is_file():
            continue
        source = f"{dump.name}/{name}"
        text = _text(path, source)
        known = backend or backend_of(text)
        tables = parse_iptables_save(text, backend=known or Backend.LEGACY, family=family, source=source)
        if known is None and any(_owns(table, nft) for table in tables):
            tables = tuple(replace(table, backend=Backend.NFT) for table in tables)
        doubled = {(table.backend, table.family, table.name) for table in found}
        again = next((table for table in tables if (table.backend, table.family, table.name) in doubled), None)
        if again is not None:
            raise ParseError(
                source, 0, 0, f"{again.name} of this back end is in another file too", "remove one of the two"
            )
        found += tables
    return tuple(found)


def _owns(table: XTable, nft: tuple[NftTable, ...]) -> bool:
    return any(FAMILIES.get(native.family) == table.family and native.name == table.name for native in nft)


def _missing(dump: NetnsDump) -> list[Missing]:
    """Return the sections that the folder says nothing about, by the rule at the top."""
    present = {section for section, names in TABLES if any((dump.folder / name).is_file() for name in names)}
    left_out = Section.LINKS in present and Section.ROUTES in present
    gaps = []
    for section, names in TABLES:
        if section in present:
            continue
        reason = _failure(dump.folder, names)
        if reason is None and (section in NEVER_EMPTY or not left_out):
            reason = f"no file {names[0]}{_text_only(dump.folder, names)}"
        if reason is not None:
            gaps.append(Missing(section=section, reason=reason))
    iptables = [name for name, _, _ in _iptables_files(dump.folder)]
    absent = [name for name in iptables if not (dump.folder / name).is_file()]
    reason = _failure(dump.folder, tuple(absent))
    if reason is None and len(absent) == len(iptables) and not left_out:
        reason = "no file iptables-save.txt"
    if reason is not None:
        gaps.append(Missing(section=Section.IPTABLES, reason=reason))
    return gaps


def _failure(folder: Path, names: tuple[str, ...]) -> str | None:
    """Return what a tool complained of where its output is not there, None if it did not."""
    for name in names:
        path = folder / f"{name.rpartition('.')[0]}.err"
        if path.is_file():
            lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if not REMARK.match(line)]
            if lines:
                return f"{path.name}: {lines[0][:200]}"
    return None


def _text_only(folder: Path, names: tuple[str, ...]) -> str:
    stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
    text = next((f"{stem}.txt" for stem in stems if (folder / f"{stem}.txt").is_file()), None)
    return f" (only {text}; take it with -j)" if text else ""


def _text(path: Path, name: str) -> str:
    data = path.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise ParseError(name, line, column, "not UTF-8 text") from None
