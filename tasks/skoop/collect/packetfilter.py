"""What filters and rewrites packets in a network namespace: iptables of both back ends, nftables, ipset, IPVS.

Read by the tools that own them, in the namespace that the process is in. Nothing is asked that would change it: legacy
tables are read only where they are loaded already (`ip_tables_names`), since asking for one loads it. Tables of nftables
are read one by one, and those that iptables-nft owns by iptables-nft-save (`nft list` takes ten times as long for them).
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from tasks.skoop.collect.tools import ToolFailed, find_tool, run_tool
from tasks.skoop.model.state import IpSet, IpvsConnection, IpvsService, NftTable
from tasks.skoop.model.xtables import Backend, XTable
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.ipset import parse_ipset_save
from tasks.skoop.parse.iptables import backend_of, parse_iptables_save
from tasks.skoop.parse.ipvs import in_kernel_order, parse_ip_vs, parse_ip_vs_conn, parse_ipvsadm
from tasks.skoop.parse.nft import lacks_devices, parse_nft, with_devices, without_iptables

PROC_NET = Path("/proc/thread-self/net")
XTABLES = frozenset(("raw", "mangle", "nat", "filter", "security"))
FAMILIES = {"ip": 4, "ip6": 6}
_PREFIX = {4: "iptables", 6: "ip6tables"}
_NAMES = {4: "ip_tables_names", 6: "ip6_tables_names"}

Note = Callable[[str], None]
"""Takes the reason why a part could not be read."""


class _Listed(msgspec.Struct):
    family: str
    name: str


class _Tables(msgspec.Struct):
    nftables: list[dict[str, msgspec.Raw]]


def read_packet_filter(missing_iptables: Note, missing_nft: Note) -> tuple[tuple[XTable, ...], tuple[NftTable, ...]]:
    """Return the iptables tables of both back ends and families, and the native nftables tables.

    What could not be read is told to `missing_iptables` and `missing_nft`, and the rest is returned.
    """
    xtables = [table for family in (4, 6) for table in _legacy(family, missing_iptables)]
    try:
        listed = _list_nft()
    except ToolFailed as error:
        missing_nft(str(error))
        return (*xtables, *_nft_unlisted(missing_iptables)), ()
    for family in (4, 6):
        if any(FAMILIES.get(table.family) == family and table.name in XTABLES for table in listed):
            xtables += _saved(f"{_PREFIX[family]}-nft-save", Backend.NFT, family, missing_iptables)
    native: list[NftTable] = []
    owned = {(table.family, table.name) for table in xtables if table.backend == Backend.NFT}
    for table in listed:
        if (FAMILIES.get(table.family, 0), table.name) in owned:
            continue
        try:
            named = [table.family, table.name]
            read = parse_nft(run_tool(["nft", "-s", "-j", "list", "table", *named]), f"nft table {table.name}")
            if any(map(lacks_devices, read)):
                read = with_devices(read, run_tool(["nft", "-s", "list", "table", *named]))
            native += read
        except (ToolFailed, ParseError) as error:
            missing_nft(str(error))
    return tuple(xtables), without_iptables(native, xtables)


def _legacy(family: int, missing: Note) -> tuple[XTable, ...]:
    try:
        loaded = (PROC_NET / _NAMES[family]).read_text().split()
    except FileNotFoundError:
        return ()  # the kernel has no legacy iptables of this family
    except OSError as error:
        missing(f"cannot tell whether legacy tables are loaded: {error.strerror}")
        return ()
    return _saved(f"{_PREFIX[family]}-legacy-save", Backend.LEGACY, family, missing) if loaded else ()


def _saved(program: str, backend: Backend, family: int, missing: Note) -> tuple[XTable, ...]:
    """Return the tables of a *-save program; where it is not installed, of the plain one if that is of the same back end."""
    name = program if find_tool(program) else f"{_PREFIX[family]}-save"
    try:
        text = run_tool([name])
        if name != program and (backend_of(text) or backend) != backend:
            missing(f"{program}: not installed, and {name} is of the other back end")
            return ()
        return parse_iptables_save(text, backend=backend, family=family, source=name)
    except (ToolFailed, ParseError) as error:
        missing(str(error))
        return ()


def _list_nft() -> list[_Listed]:
    """Return the tables of nftables, of any owner. Raises ToolFailed."""
    text = run_tool(["nft", "-j", "list", "tables"])
    try:
        rows = msgspec.json.decode(text, type=_Tables).nftables
        return [msgspec.json.decode(row["table"], type=_Listed) for row in rows if "table" in row]
    except msgspec.DecodeError as error:
        raise ToolFailed("nft -j list tables", f"printed something that is not its JSON ({error})") from error


def _nft_unlisted(missing: Note) -> Iterable[XTable]:
    """Return the tables of iptables-nft where nft is not there to list them."""
    programs = [(family, f"{_PREFIX[family]}-nft-save") for family in (4, 6)]
    return [
        table
        for family, program in programs
        if find_tool(program)
        for table in _saved(program, Backend.NFT, family, missing)
    ]


def read_ipsets() -> tuple[IpSet, ...]:
    """Return the ipsets. Raises ToolFailed, ParseError."""
    return parse_ipset_save(run_tool(["ipset", "save"]), "ipset save")


def read_ipvs() -> tuple[IpvsService, ...]:
    """Return the virtual services of IPVS; none where the kernel has no IPVS. Raises ToolFailed, ParseError, OSError.

    ipvsadm tells more than /proc, but not the order of the servers; where it is not installed /proc alone must do.
    """
    try:
        listed = parse_ip_vs((PROC_NET / "ip_vs").read_text())
    except FileNotFoundError:
        return ()
    if not listed or find_tool("ipvsadm") is None:
        return listed
    return in_kernel_order(parse_ipvsadm(run_tool(["ipvsadm", "-Sn"]), "ipvsadm -Sn"), listed)


def read_ipvs_connections() -> tuple[IpvsConnection, ...]:
    """Return IPVS's own connections and persistence templates. Raises ParseError, OSError."""
    try:
        return parse_ip_vs_conn((PROC_NET / "ip_vs_conn").read_text())
    except FileNotFoundError:
        return ()
