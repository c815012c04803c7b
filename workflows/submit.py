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
    local one is started and stopped. Raises a KubeprobeError: RunFailed (with the `exit_status` of what failed), RunCancelled.
    KeyboardInterrupt cancels the run and is passed on.
    """
    raise AssertionError((source, pairs, engine, on_event, settings, asked_by))
