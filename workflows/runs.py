"""What is known of a run: which step instances there are, how far each is, what came of it. Values only; stores are beside.

A run is its header and the changes since: `Change`s are numbered, only ever appended, and the number of the last one is the
run's version. So one record serves as state, as log and as what watchers read, and moving it costs the same for five steps as
for five thousand.
"""

from enum import StrEnum
from typing import Any

from msgspec import Raw, Struct
from msgspec.structs import replace

FORMAT = 1
"""Version of the stored form; readers take this and every earlier one."""

NO_RESULT = Raw(b"null")
"""The result of an instance that has none (yet)."""


class RunState(StrEnum):
    """Where a run stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether the run goes on no more by itself."""
        return self is not RunState.RUNNING


class StepState(StrEnum):
    """Where a step instance stands; `skipped` by its condition, `cancelled` with the run or because another one failed."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"

    @property
    def settled(self) -> bool:
        """Whether what comes after need not wait for it."""
        return self in (StepState.DONE, StepState.SKIPPED)


class StepError(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why an attempt failed: the error's class, its message for people, the exit status it asks for.

    `trace` is set where nobody expected the error: a bug, to be reported with it.
    """

    kind: str
    message: str
    exit_status: int = 3
    trace: str = ""


class StepRun(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One instance of a step: `collect` or, inside fan-outs, `collect[2]`, `probe[2,0]`.

    `label` names the element in a fan-out (a node, a range of questions). `idempotency` is the digest of the step's name and its
    whole parameters. Times are seconds since the epoch. `result` is its JSON, `result_digest` the digest of that.
    """

    key: str
    step: str
    index: tuple[int, ...] = ()
    label: str = ""
    state: StepState = StepState.PENDING
    attempts: int = 0
    progress: int = 0
    message: str = ""
    idempotency: str = ""
    started_at: float = 0.0
    ended_at: float = 0.0
    error: StepError | None = None
    result: Raw = NO_RESULT
    result_digest: str = ""


class Change(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One move of a run: its new version, when, which instances are now how, and the run's own state where that changed.

    `progress` is of the whole run, 0 to 100, never falling: each step of the DAG weighs the same, and counts with the share of
    its instances that are done.
    """

    version: int
    at: float
    steps: tuple[StepRun, ...] = ()
    state: RunState | None = None
    progress: int = 0
    error: StepError | None = None
    failed_step: str = ""


class Run(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A run as of one version. `params` is the JSON of its parameters; `error` and `failed_step` say why it failed."""

    id: str
    dag: str
    dag_digest: str
    params: Raw
    created_at: float
    asked_by: str = ""
    format: int = FORMAT
    version: int = 0
    state: RunState = RunState.RUNNING
    progress: int = 0
    changed_at: float = 0.0
    error: StepError | None = None
    failed_step: str = ""
    steps: dict[str, StepRun] = {}


class Event(Struct, frozen=True, kw_only=True):
    """What a watcher is told: a change, of which run, and the state the run is in after it."""

    run_id: str
    state: RunState
    change: Change


def fold(run: Run, changes: "list[Change] | tuple[Change, ...]") -> Run:
    """Return the run after these changes, which follow its version without a gap."""
    if not changes:
        return run
    steps = dict(run.steps)
    fields: dict[str, Any] = {}
    for change in changes:
        steps.update((step.key, step) for step in change.steps)
        if change.state is not None:
            fields.update(state=change.state, error=change.error, failed_step=change.failed_step)
    last = changes[-1]
    return replace(run, steps=steps, version=last.version, progress=last.progress, changed_at=last.at, **fields)


def instance_key(step: str, index: tuple[int, ...]) -> str:
    """Return the name of a step's instance: `collect`, `collect[2]`, `probe[2,0]`."""
    return f"{step}[{','.join(map(str, index))}]" if index else step
