"""Steps that read the world: what is asked about, what each machine's state is, and all of it in one snapshot."""

from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace

from tasks.skoop.context import Context, DiagnoseSettings
from tasks.skoop.errors import RequestError
from tasks.skoop.jobs.answers import load_pairs
from tasks.skoop.jobs.sources import collector_of, load_state, machines, objects_of, recorded, store_state
from tasks.skoop.model.cluster import ClusterState, NodeNetworkStackDump
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.specs import (
    Assembled,
    AssembleParams,
    Collected,
    CollectParams,
    Part,
    Resolved,
    ResolveParams,
    Shard,
    SourceKind,
)


def resolve(params: ResolveParams, context: Context) -> Resolved:
    """Check that the names asked for exist, and say what is to be collected and how the questions are cut.

    Of a live source only the objects are known yet, so a name that they do not have may still be a host's: that is left
    to the step that has all of the state.
    """
    from tasks.skoop.ipcache import IPCache
    from tasks.skoop.jobs.questions import questions_of

    source = params.source
    pairs = load_pairs(params.pairs, context)
    live = machines(source)
    state = (
        ClusterState(objects=objects_of(source, context)) if live else load_state(recorded(source, context), context)
    )
    ipcache = IPCache(state)
    for position in range(len(pairs)):
        try:
            questions_of(ipcache, pairs, position)
        except RequestError:
            if not live:
                raise
    parts = tuple(Part(source=source, machine=machine, label=machine.partition("/")[2]) for machine in live)
    size = context.settings.of(DiagnoseSettings).shard
    starts = range(0, len(pairs), size)
    return Resolved(
        parts=parts or (Part(source=source, label=source.kind),),
        shards=tuple(_shard(params.pairs, start, min(size, len(pairs) - start)) for start in starts),
    )


def collect(params: CollectParams, context: Context) -> Collected:
    """Bring home the state of one machine, or all of a recorded source."""
    part = params.part
    if not part.machine:
        return Collected(dump=recorded(part.source, context))
    machine = NetnsId(part.machine)
    with collector_of(part.source, context) as collector:
        wanted = len(collector.namespaces()[machine])
        seen: list[NetnsId] = []

        def report(netns: NetnsId, _error: str) -> None:
            seen.append(netns)
            context.step.progress(100 * len(seen) // max(1, wanted), netns)

        dump = collector.collect(machine, report)
    taken_at = datetime.now(UTC).isoformat(timespec="seconds")
    return Collected(dump=context.put(dump), taken_at=taken_at, failed=len(dump.failed))


def assemble(params: AssembleParams, context: Context) -> Assembled:
    """Put what the machines brought home into one snapshot, dated by the first of them."""
    if params.source.kind is not SourceKind.TOPOLOGY:
        digest = params.dumps[0]
        return Assembled(state=digest, nodes=_node_names(load_state(digest, context)))
    from tasks.skoop.collect.manager import assemble as put_together
    from tasks.skoop.collect.protocol import NothingCollected

    dumps = [context.get(digest, NodeNetworkStackDump) for digest in params.dumps]
    source = f"{params.source.kind} {Path(params.source.path).name}"
    state = put_together(objects_of(params.source, context), dumps, source=source)
    if not state.netns:
        raise NothingCollected(source, state.uncollected)
    state = replace(state, taken_at=min(params.taken_at, default=""))
    return Assembled(state=store_state(state, context), nodes=_node_names(state))


def _shard(pairs: str, start: int, count: int) -> Shard:
    label = f"{start + 1}" if count == 1 else f"{start + 1}-{start + count}"
    return Shard(pairs=pairs, start=start, count=count, label=label)


def _node_names(state: ClusterState) -> tuple[str, ...]:
    return tuple(node.name for node in state.objects.nodes)
