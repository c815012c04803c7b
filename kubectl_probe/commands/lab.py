"""`kubectl-probe lab …`: real clusters in network namespaces, to learn on, to break and to diagnose."""

from typing import TYPE_CHECKING, Annotated

import typer

from kubectl_probe.exits import ExitStatus
from kubectl_probe.options import (
    DontFragmentOption,
    Family,
    FamilyOption,
    FromOption,
    OutputOption,
    PayloadOption,
    PortOption,
    ProtocolOption,
    SourcePortOption,
    ToOption,
    Transport,
)
from kubectl_probe.output import Format, say, say_bytes

if TYPE_CHECKING:
    from lab.api import LabInfo
    from lab.faults.fault import Fault
    from lab.truth import Truth

app = typer.Typer(
    help="Real clusters in network namespaces: to learn on, to break, to diagnose. The machine's own network is not touched.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
NameOption = Annotated[str, typer.Option("--name", metavar="NAME", help="Which lab, where several run.")]
FaultArgument = Annotated[
    str, typer.Argument(metavar="FAULT", help="A fault by its name or id; `lab faults` lists them.")
]


@app.command("up")
def up(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="flannel-vxlan, flannel-host-gw or bridge.")
    ] = "flannel-vxlan",
    name: NameOption = "default",
    nodes: Annotated[int, typer.Option("--nodes", min=2, max=4, help="How many nodes.")] = 3,
    backend: Annotated[
        str, typer.Option("--backend", help="Which iptables writes the rules: legacy or nft.")
    ] = "legacy",
    family: Annotated[
        list[Family] | None, typer.Option("--family", help="Address families; repeat for both (default: both).")
    ] = None,
) -> int:
    """Build a cluster and keep it running.

    \b
    Example:
      kubectl-probe lab up flannel-vxlan --nodes 3
    """
    from lab import api

    families = tuple(int(one) for one in family) if family else (4, 6)
    info = api.up(kind, name=name, nodes=nodes, backend=backend, families=families)
    say(f"lab {info.name} is up: {_describe(info)}")
    say(f"topology file: {info.topology}")
    client, target = _an_example(info)
    say("\nTry:")
    say(f"  kubectl-probe diagnose --topology {info.topology} --from {client} --to {target}")
    say(f"  kubectl-probe lab probe --from {client} --to {target}")
    say("  kubectl-probe lab faults")
    return ExitStatus.NOTHING_WRONG


@app.command("down")
def down(name: NameOption = "default") -> int:
    """End a lab and everything it made."""
    from lab import api

    api.down(name)
    say(f"lab {name} is down")
    return ExitStatus.NOTHING_WRONG


@app.command("status")
def status(output: OutputOption = Format.TEXT) -> int:
    """List the running labs and the faults that are in them."""
    from lab import api

    infos = [api.status(name) for name in api.running()]
    if output is Format.JSON:
        import msgspec

        say_bytes(msgspec.json.encode(infos, enc_hook=str))
        return ExitStatus.NOTHING_WRONG
    if not infos:
        reason = api.available()
        say("no lab is running" + (f", and none can: {reason}" if reason else "; start one with: kubectl-probe lab up"))
    for info in infos:
        say(f"{info.name}: {_describe(info)}\n  topology file: {info.topology}")
        for broken in info.broken:
            say(f"  broken: {broken.fault} on {broken.on}")
    return ExitStatus.NOTHING_WRONG


@app.command("faults")
def faults(
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help="Only those that fit this kind of lab.")] = None,
    output: OutputOption = Format.TEXT,
) -> int:
    """List the faults that `lab break` can put in."""
    from lab import api

    found = api.faults(kind)
    if output is Format.JSON:
        import msgspec

        say_bytes(msgspec.json.encode([_fault_members(fault) for fault in found]))
        return ExitStatus.NOTHING_WRONG
    width = max((len(fault.name) for fault in found), default=0)
    for fault in found:
        say(f"{fault.id:<4}  {fault.name:<{width}}  {fault.title}")
    return ExitStatus.NOTHING_WRONG


@app.command("break")
def break_(
    fault: FaultArgument,
    on: Annotated[
        str | None, typer.Option("--on", metavar="NAME", help="A node or pod (default: the fault's own choice).")
    ] = None,
    name: NameOption = "default",
) -> int:
    """Put a fault into a lab.

    \b
    Example:
      kubectl-probe lab break ip-forward-off --on n2
    """
    from lab import api

    done = api.break_(name, _fault_id(fault), on)
    say(f"broken: {done.fault} on {done.on}")
    for did in done.did:
        say(f"  {did}")
    return ExitStatus.NOTHING_WRONG


@app.command("mend")
def mend(
    fault: Annotated[str | None, typer.Argument(metavar="FAULT", help="Which fault (default: all).")] = None,
    name: NameOption = "default",
) -> int:
    """Take a fault, or all of them, out of a lab again."""
    from lab import api

    mended = api.mend(name, _fault_id(fault) if fault else None)
    say(f"mended: {', '.join(mended)}" if mended else "nothing was broken")
    return ExitStatus.NOTHING_WRONG


@app.command("probe")
def probe(
    src: FromOption,
    dst: ToOption,
    dport: PortOption = 0,
    protocol: ProtocolOption = Transport.TCP,
    sport: SourcePortOption = 0,
    payload_bytes: PayloadOption = 0,
    df: DontFragmentOption = False,
    family: FamilyOption = None,
    count: Annotated[int, typer.Option("--count", min=1, max=100, help="How many tries.")] = 1,
    name: NameOption = "default",
    output: OutputOption = Format.TEXT,
) -> int:
    """Try a connection for real, and say what the kernel did with it. Exit status 1 if a try failed.

    \b
    Example:
      kubectl-probe lab probe --from shop/client-1 --to svc/shop/web --count 6
    """
    from lab import api

    truths = api.probe(
        name, src, dst, dport or None, protocol.value,
        count=count, family=int(family) if family else None, sport=sport, payload=payload_bytes, df=df,
    )  # fmt: skip
    for truth in truths:
        if output is Format.JSON:
            import msgspec

            say_bytes(msgspec.json.encode(truth))
        else:
            say(_truth_text(truth))
    failed = any(truth.view != "connected" or truth.place is not None for truth in truths)
    return ExitStatus.PROBLEM_FOUND if failed else ExitStatus.NOTHING_WRONG


def _fault_id(given: str) -> str:
    """Return the id of a fault that is named by its name; anything else as it is, for the lab to judge."""
    from lab import api

    return {fault.name: fault.id for fault in api.faults()}.get(given, given)


def _fault_members(fault: "Fault") -> dict[str, object]:
    return {
        "id": fault.id,
        "name": fault.name,
        "title": fault.title,
        "cause": fault.cause,
        "target": fault.target,
        "kinds": [str(kind) for kind in fault.kinds],
    }


def _describe(info: "LabInfo") -> str:
    families = " and ".join(f"IPv{family}" for family in info.families)
    return f"{info.kind}, {info.nodes} nodes, iptables-{info.backend}, {families}"


def _an_example(info: "LabInfo") -> tuple[str, str]:
    """Return a client and a Service with several backends to try."""
    client = next(pod.key for pod in info.plan.pods if pod.app == "client")
    web = next(service for service in info.plan.services if service.name == "web")
    return client, f"svc/{web.key}:{web.ports[0].port}"


def _truth_text(truth: "Truth") -> str:
    attempt = truth.attempt
    parts = [f"{attempt.ask.src} -> {attempt.ask.dst} {attempt.ask.protocol}/{attempt.ask.dport}: {truth.view}"]
    if truth.server:
        parts.append(f"answered by {truth.server}, which saw {truth.seen_src}")
    if truth.errno:
        parts.append(truth.errno)
    if truth.place is not None:
        parts.append(
            f"the kernel stopped the {truth.direction} packet at {truth.place}"
            + (f" ({truth.reason})" if truth.reason else "")
        )
    return ", ".join(parts) + f", {attempt.ms:.0f} ms"
