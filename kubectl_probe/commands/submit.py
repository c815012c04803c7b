"""`kubectl-probe submit diagnose`: the same questions as a run that can be watched."""

from enum import StrEnum
from typing import Annotated

import typer

from kubectl_probe.asking import pairs_from, print_pairs, print_result
from kubectl_probe.commands.diagnose import DetailOption, PairsOption
from kubectl_probe.errors import OptionsClash
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
from kubectl_probe.output import Format, note
from tasks.skoop.report.depth import Depth


class EngineName(StrEnum):
    """What `--engine` takes."""

    LOCAL = "local"


app = typer.Typer(
    help="Run a DAG and watch it.", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)


@app.callback()
def _options() -> None:
    # With a callback typer keeps `diagnose` as a word of its own while it is the only command.
    return


@app.command("diagnose")
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
    engine: Annotated[EngineName, typer.Option("--engine", help="What runs the steps.")] = EngineName.LOCAL,
    wait: Annotated[bool, typer.Option("--wait", help="Watch the run to its end and print the answer.")] = False,
    detail: DetailOption = Depth.SUMMARY,
    output: OutputOption = Format.TEXT,
) -> int:
    """Run the DAG `diagnose` and show a live tree of its steps.

    \b
    Example:
      kubectl-probe submit diagnose --topology lab.yaml --from shop/client --to svc/shop/web:80 --wait
    """
    if not wait:
        raise OptionsClash(f"the {engine} engine ends with this command, and a run with it", "add --wait")
    source = source_of(topology, snapshot, dumps)
    asked = pairs_from(
        pairs, src, dst, family, dport=dport, proto=protocol.value, sport=sport, payload_bytes=payload_bytes, df=df
    )
    from kubectl_probe.progress import watcher
    from workflows.submit import diagnose as run

    with watcher("diagnose") as watch:
        result = run(source, asked, on_event=watch, asked_by="kubectl-probe submit")
    note(f"run {result.run_id}, state {result.state}")
    if pairs is not None:
        return print_pairs(result.answers, output)
    return print_result(result, output, detail)
