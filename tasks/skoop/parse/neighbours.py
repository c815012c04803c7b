"""Who is where on a link: `ip -j neigh [show proxy]` and `bridge -j [-d] fdb`.

Follows iproute2 5 to 6.15. Of several state flags of a neighbour the kernel sets one at a time; the first known is taken.
"""

from msgspec import UNSET, Struct, UnsetType

from tasks.skoop.model.addr import Mac, parse_ip
from tasks.skoop.model.state import FdbEntry, Neighbour, NeighbourState
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.jsontext import read_rows


class _Neighbour(Struct):
    """Flags are printed as null: present means set."""

    dst: str
    dev: str = ""
    lladdr: str | None = None
    state: list[str] = []
    proxy: bool | UnsetType | None = UNSET
    router: bool | UnsetType | None = UNSET


class _Fdb(Struct):
    mac: str = ""
    ifname: str = ""
    dst: str | None = None
    port: int | str | None = None
    vni: int | None = None
    vlan: int | None = None
    flags: list[str] = []
    master: str | None = None
    state: str = ""
    nhid: int = 0


def parse_neighbours(text: str, source: str = "ip-neigh.json") -> tuple[Neighbour, ...]:
    """Return the ARP and ND entries of both families, in order. Raises ParseError."""
    try:
        return tuple(
            Neighbour(
                ip=parse_ip(row.dst),
                dev=row.dev,
                mac=Mac(row.lladdr.lower()) if row.lladdr else None,
                state=_state(row.state),
                proxy=row.proxy is not UNSET,
                router=row.router is not UNSET,
            )
            for row in read_rows(text, _Neighbour, source)
        )
    except ValueError as error:
        raise ParseError(source, 1, 1, str(error)) from None


def parse_fdb(text: str, source: str = "bridge-fdb.json") -> tuple[FdbEntry, ...]:
    """Return the forwarding entries of bridges and devices, in order; a learned one is neither permanent nor static.

    Entries through a nexthop group have no `dst`. Raises ParseError.
    """
    try:
        return tuple(
            FdbEntry(
                mac=Mac(row.mac.lower()),
                dev=row.ifname,
                master=row.master,
                dst=parse_ip(row.dst) if row.dst else None,
                port=int(row.port) if row.port is not None and str(row.port).isdigit() else None,
                vni=row.vni,
                vlan=row.vlan,
                permanent=row.state == "permanent",
                static=row.state in ("static", "noarp"),
                sticky="sticky" in row.flags,
                nhid=row.nhid,
            )
            for row in read_rows(text, _Fdb, source)
            if row.mac
        )
    except ValueError as error:
        raise ParseError(source, 1, 1, str(error)) from None


def _state(names: list[str]) -> NeighbourState:
    return next((NeighbourState(name) for name in names if name in NeighbourState.__members__), NeighbourState.NONE)
