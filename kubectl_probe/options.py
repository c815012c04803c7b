"""The options that more than one command has, each said once: where the state comes from, and what is asked."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kubectl_probe.errors import OptionsClash, SourceMissing
from kubectl_probe.output import Format

if TYPE_CHECKING:
    from tasks.skoop.specs import SourceSpec


class Transport(StrEnum):
    """What `--protocol` takes."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"
    ICMP = "icmp"


class Family(StrEnum):
    """What `--family` takes."""

    IPV4 = "4"
    IPV6 = "6"


TopologyOption = Annotated[
    Path | None, typer.Option("--topology", metavar="FILE", help="Collect now, from the namespaces this file names.")
]
SnapshotOption = Annotated[
    Path | None, typer.Option("--snapshot", metavar="PATH", help="A snapshot: a .kps file or a folder.")
]
DumpsOption = Annotated[
    Path | None,
    typer.Option("--dumps", metavar="DIR", help="A folder with the raw output of iptables-save, ip, kubectl …"),
]
FromOption = Annotated[
    str, typer.Option("--from", metavar="NAME", help="Who connects: ns/pod, node/NAME, an address …")
]
ToOption = Annotated[str, typer.Option("--to", metavar="NAME", help="To whom: svc/NS/NAME[:PORT], ns/pod, node/NAME …")]
PortOption = Annotated[int, typer.Option("--dport", min=0, max=65535, metavar="PORT", help="Destination port.")]
ProtocolOption = Annotated[Transport, typer.Option("--protocol", case_sensitive=False, help="Transport protocol.")]
SourcePortOption = Annotated[
    int, typer.Option("--sport", min=0, max=65535, metavar="PORT", help="Source port, where it matters (default: any).")
]
PayloadOption = Annotated[
    int, typer.Option("--payload-bytes", min=0, metavar="N", help="How much each side sends, to see about the MTU.")
]
DontFragmentOption = Annotated[bool, typer.Option("--df", help="The datagram must not be fragmented.")]
FamilyOption = Annotated[
    Family | None, typer.Option("--family", help="Which addresses to take where a name has both (default: the first).")
]
OutputOption = Annotated[Format, typer.Option("--output", "-o", help="How to print the result.")]


def source_of(topology: Path | None, snapshot: Path | None, dumps: Path | None) -> "SourceSpec":
    """Return where the state comes from. Raises OptionsClash unless exactly one is given, SourceMissing if it is not there."""
    given = [path for path in (topology, snapshot, dumps) if path is not None]
    if len(given) != 1:
        problem = "two sources are given" if given else "no source of the network's state is given"
        raise OptionsClash(problem, "name one of --topology FILE, --snapshot PATH, --dumps DIR")
    from tasks.skoop.specs import SourceSpec

    if topology is not None:
        if not topology.is_file():
            raise SourceMissing(topology, "a topology file")
        return SourceSpec.topology(topology)
    if dumps is not None:
        if not dumps.is_dir():
            raise SourceMissing(dumps, "a folder of dumps")
        return SourceSpec.dumps(dumps)
    if snapshot is None or not snapshot.exists():
        raise SourceMissing(given[0], "a snapshot")
    return SourceSpec.snapshot(snapshot)
