"""`kubectl-probe diagnose`: does this traffic arrive, and if not, why?"""

from pathlib import Path
from typing import Annotated

import typer

from kubectl_probe.asking import pairs_from, print_pairs, print_result
from kubectl_probe.options import (
    DontFragmentOption,
    DumpsOption,
    FamilyOption,
    FromOption,
    OutputOption,
    PayloadOption,
    PortOption,
    ProtocolOption,
    SnapshotOption,
    SourcePortOption,
    ToOption,
    TopologyOption,
    Transport,
    source_of,
)
from kubectl_probe.output import Format
from tasks.skoop.report.depth import Depth

PairsOption = Annotated[
    Path | None,
    typer.Option(
        "--pairs", metavar="FILE", help="Many questions: JSON lines with src, dst, dport, proto ('-': standard input)."
    ),
]
DetailOption = Annotated[Depth, typer.Option("--detail", help="How much of the way is told.")]


def diagnose(
    topology: TopologyOption = None,
    snapshot: SnapshotOption = None,
    dumps: DumpsOption = None,
    src: FromOption = "",
    dst: ToOption = "",
    dport: PortOption = 0,
    protocol: ProtocolOption = Transport.TCP,
    sport: SourcePortOption = 0,
    payload_bytes: PayloadOption = 0,
    df: DontFragmentOption = False,
    family: FamilyOption = None,
    pairs: PairsOption = None,
    detail: DetailOption = Depth.SUMMARY,
    output: OutputOption = Format.TEXT,
) -> int:
    """Say whether traffic arrives; if not, where it ends, why, and what mends it.

    Names are those that people use: shop/client (a pod), deploy/shop/web, svc/shop/web:80, node/n1, host/ext, a DNS name, an
    address.

    \b
    Examples:
      kubectl-probe diagnose --dumps ./dumps --from shop/client --to svc/shop/web:80
      kubectl-probe diagnose --snapshot cluster.kps --from node/n1 --to 10.96.0.10 --dport 53 --protocol udp
      kubectl-probe diagnose --topology lab.yaml --from shop/client --to shop/db --dport 5432 -o json
      kubectl-probe diagnose --snapshot cluster.kps --pairs questions.jsonl -o json
    \b
    Exit status: 0 all of it works, 1 a problem was found, 2 the command was wrong, 3 it could not be said.
    """
    source = source_of(topology, snapshot, dumps)
    asked = pairs_from(
        pairs, src, dst, family, dport=dport, proto=protocol.value, sport=sport, payload_bytes=payload_bytes, df=df
    )
    from workflows.submit import diagnose as run

    result = run(source, asked, asked_by="kubectl-probe diagnose")
    if pairs is not None:
        return print_pairs(result.answers, output)
    return print_result(result, output, detail)
