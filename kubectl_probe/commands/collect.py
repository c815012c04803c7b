"""`kubectl-probe collect`: read a network's state and keep it in one file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kubectl_probe.errors import OptionsClash
from kubectl_probe.exits import ExitStatus
from kubectl_probe.options import DumpsOption, TopologyOption, source_of
from kubectl_probe.output import is_colourful, note, say

if TYPE_CHECKING:
    from tasks.skoop.collect.protocol import CollectProgress, Progress
    from tasks.skoop.model.cluster import ClusterState

HostOption = Annotated[
    bool, typer.Option("--host", help="Collect this machine: its own namespace and all others in it.")
]
FileOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="PATH", help="Where to keep it: a .kps file, or a folder.")
]
NodeOption = Annotated[
    str | None, typer.Option("--node", metavar="NAME", help="With --host: its name as a node (default: its host name).")
]
ObjectsOption = Annotated[
    Path | None,
    typer.Option("--objects", metavar="DIR", help="With --host: a folder of `kubectl get KIND -A -o json`."),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, max=256, help="Collecting processes (default: one per processor).")
]


def collect(
    topology: TopologyOption = None,
    host: HostOption = False,
    dumps: DumpsOption = None,
    node: NodeOption = None,
    objects: ObjectsOption = None,
    file: FileOption = Path("cluster.kps"),
    workers: WorkersOption = None,
) -> int:
    """Read the state of a network and keep it as a snapshot, which can be mailed, compared and diagnosed anywhere.

    What cannot be read is recorded in the snapshot with its reason; the rest is kept.

    \b
    Examples:
      kubectl-probe collect --topology lab.yaml -o lab.kps
      kubectl-probe collect --dumps ./dumps -o cluster.kps
      sudo kubectl-probe collect --host -o node.kps
    """
    if host and (topology or dumps):
        raise OptionsClash("two sources are given", "name one of --topology FILE, --host, --dumps DIR")
    if not host and not topology and not dumps:
        raise OptionsClash("no source is given", "name one of --topology FILE, --host, --dumps DIR")
    from tasks.skoop.snapshot import save

    if not host and (node or objects):
        raise OptionsClash("--node and --objects belong to --host", "leave them out")
    state = _collect_host(node, objects, workers) if host else _collect(topology, dumps, workers)
    digest = save(state, file)
    _tell_gaps(state)
    say(f"{file}: {len(state.netns)} network namespaces, {len(state.objects.pods)} pods, digest {digest[:16]}")
    return ExitStatus.NOTHING_WRONG


def _collect(topology: Path | None, dumps: Path | None, workers: int | None) -> "ClusterState":
    if topology is not None:
        source_of(topology, None, None)
        from tasks.skoop.collect.topology import collect_topology

        return collect_topology(topology, workers=workers, progress=_progress())
    source_of(None, None, dumps)
    from tasks.skoop.collect.dumps import load_dumps

    assert dumps is not None
    return load_dumps(dumps)


def _collect_host(node: str | None, objects: Path | None, workers: int | None) -> "ClusterState":
    from tasks.skoop.collect.host import collect_host

    return collect_host(node=node, objects=objects, workers=workers, progress=_progress())


def _progress() -> "Progress | None":
    """Return a teller of how far collecting is, on a terminal."""
    if not is_colourful(sys.stderr):
        return None

    def tell(progress: "CollectProgress") -> None:
        end = "\n" if progress.done == progress.total else ""
        sys.stderr.write(f"\r\x1b[Kcollected {progress.done}/{progress.total}  {progress.netns}{end}")
        sys.stderr.flush()

    return tell


def _tell_gaps(state: "ClusterState") -> None:
    for netns, why in state.uncollected.items():
        note(f"not collected: {netns}: {why}")
    for netns, found in state.netns.items():
        for gap in found.missing:
            note(f"not collected: {netns}: {gap.section}: {gap.reason}")
    for kind, why in state.objects.missing.items():
        note(f"not collected: objects: {kind}: {why}")
