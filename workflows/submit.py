"""How a program asks for a diagnosis without knowing of DAGs and engines: one call in, answers out.

The command line, and later the operators and the API, come in here. A call runs the `diagnose` DAG on the engine it is given,
or on a local one that lives as long as the call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.skoop.model.diagnosis import Diagnosis
from tasks.skoop.model.suspicion import Suspicion
from tasks.skoop.specs import Pair, SourceSpec

if TYPE_CHECKING:
    from tasks.skoop.context import Settings
    from workflows.engines.local import LocalEngine
    from workflows.engines.protocol import Engine
    from workflows.runs import Event

OnEvent = Callable[["Event"], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One pair and its diagnosis."""

    pair: Pair
    diagnosis: Diagnosis


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnoseResult:
    """All answers, in the order of the pairs.

    `cluster_suspicions` are about the whole cluster and not repeated in each diagnosis. `state` is the digest of the snapshot
    that was diagnosed. A pair whose name stands for several endpoints (a Deployment) has several answers, one after the other.
    """

    run_id: str
    answers: tuple[Answer, ...]
    cluster_suspicions: tuple[Suspicion, ...]
    state: str


def diagnose(
    source: SourceSpec,
    pairs: Sequence[Pair],
    *,
    engine: "Engine | None" = None,
    on_event: OnEvent | None = None,
    settings: "Settings | None" = None,
    asked_by: str = "",
) -> DiagnoseResult:
    """Answer questions about one network.

    `on_event` gets every change of the run (`workflows.runs.Event`), in order, in the caller's thread. Without `engine` a
    local one is started with these `settings`, and stopped; an engine that is given has its own. Raises a KubeprobeError:
    RunFailed (with the `exit_status` of what failed), RunCancelled. Whatever else ends the watching (KeyboardInterrupt, an
    error in `on_event`) cancels the run and is passed on.
    """
    if engine is not None:
        return _diagnose(source, tuple(pairs), engine, on_event, asked_by)
    with local_engine(settings) as own:
        return _diagnose(source, tuple(pairs), own, on_event, asked_by)


def local_engine(settings: "Settings | None" = None) -> "LocalEngine":
    """Return a local engine that has every step there is and keeps runs and blobs in memory. Close it (`with`)."""
    from tasks.skoop.context import Context, Settings
    from tasks.skoop.jobs import JOBS
    from workflows.blobs import MemoryBlobs
    from workflows.engines.local import LocalEngine

    return LocalEngine(JOBS, context=Context(blobs=MemoryBlobs(), settings=settings or Settings.build()))


def _diagnose(
    source: SourceSpec, pairs: tuple[Pair, ...], engine: "Engine", on_event: OnEvent | None, asked_by: str
) -> DiagnoseResult:
    from tasks.skoop.jobs.answers import Answers, Suspicions, pairs_json
    from tasks.skoop.specs import Reported
    from workflows.dags.diagnose import DAG, DiagnoseRequest

    context = engine.context
    request = DiagnoseRequest(source=source, pairs=context.blobs.put(pairs_json(pairs)))
    run_id = engine.submit(DAG, request, asked_by=asked_by)
    try:
        for event in engine.watch(run_id):
            if on_event is not None:
                on_event(event)
    except BaseException:
        engine.cancel(run_id)
        raise
    reported = engine.result(run_id)
    assert isinstance(reported, Reported)
    shards = (context.get(digest, Answers) for digest in reported.diagnoses)
    return DiagnoseResult(
        run_id=run_id,
        answers=tuple(Answer(pair=pairs[one.pair], diagnosis=one.diagnosis) for shard in shards for one in shard.items),
        cluster_suspicions=context.get(reported.cluster, Suspicions).items,
        state=reported.state,
    )
