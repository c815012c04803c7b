"""Runs DAGs in this process: a real Celery application on a memory broker, its worker on threads here, nothing to install.

Every instance of a step is one Celery call; which may start is the run's own state (`active`, `frontier`), so fan-outs cost what
their instances cost. Time limits and cancelling reach into steps that compute (`interrupt`). Celery is imported when the first
run is submitted.
"""

import hashlib
import json
import secrets
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from threading import RLock
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw
from pydantic import ValidationError

from tasks.skoop.context import Context, RunIdentity
from tasks.skoop.errors import KubeprobeError, RequestError
from tasks.skoop.specs import MAX_RESULT_BYTES, AnyBinding, Message
from workflows.blobs import MemoryBlobs
from workflows.dag import Dag
from workflows.engines.active import ActiveRun
from workflows.engines.alarm import Alarm
from workflows.engines.interrupt import Attempt, StepStopped
from workflows.errors import (
    EngineClosed,
    ParamsDoNotFit,
    ResultDoesNotFit,
    ResultTooLarge,
    RunCancelled,
    RunFailed,
    RunNotEnded,
    RunNotRetryable,
    StepTimedOut,
    UnknownStep,
)
from workflows.frontier import Frontier
from workflows.runs import Change, Event, Run, RunState, StepError, StepRun
from workflows.runstore import MemoryRuns, RunStore

if TYPE_CHECKING:
    from workflows.app import InProcessWorker, StepApp


class LocalEngine:
    """An Engine (see `protocol`) in this process; `with` closes it.

    `bindings` are the functions of steps by name. `context` carries blob store and settings to them, `runs` keeps the records;
    both are in memory unless given. `grace_s` is how long a step that was told to stop may take before nobody waits for it.
    """

    def __init__(
        self,
        bindings: Mapping[str, AnyBinding],
        *,
        context: Context | None = None,
        runs: RunStore | None = None,
        threads: int = 8,
        grace_s: float = 2.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bindings = bindings
        self._context = context or Context(blobs=MemoryBlobs())
        self._runs: RunStore = runs or MemoryRuns()
        self._threads = threads
        self._grace_s = grace_s
        self._clock = clock
        self._alarm = Alarm()
        self._active: dict[str, ActiveRun] = {}
        self._dags: dict[str, Dag] = {}
        self._worker: tuple[StepApp, InProcessWorker] | None = None
        self._closed = False
        self._lock = RLock()

    def __enter__(self) -> "LocalEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def context(self) -> Context:
        """What steps are given: its blob store holds what digests in results refer to."""
        return self._context

    def submit(self, dag: Dag, params: Message, *, asked_by: str = "", run_id: str = "") -> str:
        """Start a run; see Engine."""
        if not isinstance(params, dag.params):
            raise ParamsDoNotFit(dag.name, (f"they are {type(params).__name__}, it takes {dag.params.__name__}",))
        for step in dag.steps.values():
            if step.spec.name not in self._bindings:
                raise UnknownStep(dag.name, step.spec.name, tuple(sorted(self._bindings)))
        values = params.model_dump(mode="json")
        run = Run(
            id=run_id or time.strftime("%Y%m%d-%H%M%S-", time.gmtime(self._clock())) + secrets.token_hex(3),
            dag=dag.name,
            dag_digest=dag.digest,
            params=Raw(msgspec.json.encode(values)),
            created_at=self._clock(),
            asked_by=asked_by,
        )
        with self._lock:
            self._open_worker()
            self._runs.create(run)
            self._dags[run.dag_digest] = dag
        self._go(ActiveRun(dag, run, Frontier(dag, values), self._runs, self._clock))
        return run.id

    def watch(self, run_id: str, after: int = 0) -> Iterator[Event]:
        """Yield the changes of a run; see Engine. A run that another process moves is told as far as it is now."""
        active = self._active.get(run_id)
        state = RunState.RUNNING
        while True:
            # Looked at before reading: what is written until then will be read.
            ended = active is None or active.state.ended
            for change in self._runs.changes(run_id, after):
                state = change.state or state
                after = change.version
                yield Event(run_id=run_id, state=state, change=change)
            if active is not None and active.broken is not None:
                raise active.broken
            if ended or active is None:
                return
            with active.changed:
                while not active.state.ended and active.version <= after:
                    active.changed.wait()

    def run(self, run_id: str) -> Run:
        """Return the run; see Engine."""
        return self._runs.load(run_id)

    def result(self, run_id: str) -> Message:
        """Return a run's result; see Engine."""
        run = self._runs.load(run_id)
        match run.state:
            case RunState.FAILED:
                error = run.error or StepError(kind="", message="the record does not say why")
                raise RunFailed(run_id, run.failed_step, error.message, error.exit_status)
            case RunState.CANCELLED:
                raise RunCancelled(run_id)
            case RunState.RUNNING:
                raise RunNotEnded(run_id, run.state)
        dag = self._dag_of(run)
        model: type[Message] = dag.steps[dag.result].spec.result
        return model.model_validate_json(bytes(run.steps[dag.result].result))

    def cancel(self, run_id: str) -> bool:
        """Cancel a run; see Engine."""
        active = self._active.get(run_id)
        if active is not None:
            attempts = active.cancel()
            for key, attempt in attempts or ():
                self._stop(active, key, attempt, RunCancelled(run_id))
            self._forget(active)
            return attempts is not None
        run = self._runs.load(run_id)
        left = Change(version=run.version + 1, at=self._clock(), state=RunState.CANCELLED, progress=run.progress)
        return not run.state.ended and self._runs.append(run_id, left)

    def retry_from_failure(self, run_id: str) -> None:
        """Take up a run again; see Engine."""
        run = self._runs.load(run_id)
        if run.state not in (RunState.FAILED, RunState.CANCELLED):
            raise RunNotRetryable(run_id, f"it is {run.state}; only what failed or was cancelled can be")
        dag = self._dag_of(run)
        with self._lock:
            self._open_worker()
        frontier = Frontier(dag, msgspec.json.decode(run.params), run.steps)
        self._go(ActiveRun(dag, run, frontier, self._runs, self._clock))

    def close(self) -> None:
        """Cancel what runs and end all threads; see Engine."""
        with self._lock:
            self._closed = True
        for run_id, active in list(self._active.items()):
            self.cancel(run_id)
            _wait_for_end(active, 2 * self._grace_s)
        if self._worker is not None:
            self._worker[1].stop()
            self._worker = None
        self._alarm.close()

    def _open_worker(self) -> "StepApp":
        if self._closed:
            raise EngineClosed
        if self._worker is None:
            from workflows.app import InProcessWorker, memory_app  # half a second, only where something runs

            app = memory_app(self._bindings, self._execute)
            worker = InProcessWorker(app, self._threads)
            worker.start()
            self._worker = app, worker
        return self._worker[0]

    def _dag_of(self, run: Run) -> Dag:
        dag = self._dags.get(run.dag_digest)
        if dag is None:
            raise RunNotRetryable(run.id, f"its DAG {run.dag} is none that this engine has seen: submit it anew")
        return dag

    def _go(self, active: ActiveRun) -> None:
        with self._lock:
            self._active[active.id] = active
        try:
            ready = active.begin()
        except KubeprobeError:
            self._forget(active)
            raise
        self._send_all(active, ready)

    def _forget(self, active: ActiveRun) -> None:
        if active.state.ended:
            with self._lock:
                if self._active.get(active.id) is active:
                    del self._active[active.id]

    def _send_all(self, active: ActiveRun, ready: list[StepRun]) -> None:
        for instance in ready:
            self._send(active, instance)
        self._forget(active)

    def _send(self, active: ActiveRun, instance: StepRun) -> None:
        """Hand one attempt to Celery. Parameters too large for a message go by digest."""
        try:
            step = active.dag.steps[instance.step]
            params = active.params_of(instance)
            payload: dict[str, Any] = {"idempotency": _idempotency(step.spec.name, params)}
            if len(params) <= MAX_RESULT_BYTES:
                payload["params"] = json.loads(params)
            else:
                payload["blob"] = self._context.blobs.put(params)
            worker = self._worker
            if worker is not None:
                worker[0].call(step.spec.name, step.queue, active.id, instance.key, instance.attempts + 1, payload)
        except Exception as error:  # noqa: BLE001  # the boundary of a task: the run must end with the reason
            active.give_up(_step_error(instance.key, error))

    def _execute(self, run_id: str, key: str, number: int, payload: dict[str, Any]) -> None:
        """Carry out one attempt, on a thread of the worker."""
        active = self._active.get(run_id)
        if active is None:
            return
        taken = active.take_up(key, number, payload["idempotency"])
        if taken is None:
            return
        instance, attempt = taken
        step = active.dag.steps[instance.step]
        late = StepTimedOut(key, step.time_limit_s)
        limit = self._alarm.after(step.time_limit_s, lambda: self._stop(active, key, attempt, late))
        try:
            result = self._perform(active, instance, attempt, payload)
        except StepStopped:
            self._failed(active, key, attempt, attempt.reason or late)
        except Exception as error:  # noqa: BLE001  # the boundary of a task: what is raised becomes a failed step
            self._failed(active, key, attempt, error)
        else:
            self._send_all(active, self._settle(active, key, attempt, result))
        finally:
            self._alarm.cancel(limit)
            self._forget(active)

    def _perform(self, active: ActiveRun, instance: StepRun, attempt: Attempt, payload: dict[str, Any]) -> bytes:
        spec = active.dag.steps[instance.step].spec
        try:
            given = spec.params.model_validate_json(_params_json(payload, self._context))
        except ValidationError as error:
            problems = tuple(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise ParamsDoNotFit(f"step {instance.key}", problems) from error
        identity = RunIdentity(run_id=active.id, step=instance.key, asked_by=active.asked_by)
        context = self._context.for_step(identity, _Handle(active, instance.key, attempt))
        with attempt:
            result = self._bindings[spec.name].run(given, context)
        if not isinstance(result, spec.result):
            raise ResultDoesNotFit(instance.key, type(result).__name__, spec.result.__name__)
        content: bytes = result.model_dump_json().encode()
        if len(content) > MAX_RESULT_BYTES:
            raise ResultTooLarge(instance.key, len(content), MAX_RESULT_BYTES)
        return content

    def _settle(self, active: ActiveRun, key: str, attempt: Attempt, result: bytes) -> list[StepRun]:
        try:
            return active.succeed(key, attempt, result)
        except Exception as error:  # noqa: BLE001  # the boundary of a task: the run must end with the reason
            active.give_up(_step_error(key, error))
            return []

    def _failed(self, active: ActiveRun, key: str, attempt: Attempt, error: Exception) -> None:
        again = active.fail(key, attempt, _step_error(key, error), retryable=not isinstance(error, RequestError))
        if again is not None:
            instance, pause_s = again
            self._alarm.after(pause_s, lambda: self._send(active, instance))

    def _stop(self, active: ActiveRun, key: str, attempt: Attempt, reason: KubeprobeError) -> None:
        """Tell an attempt to stop; if it has not after the grace, its end is not waited for."""

        def abandon() -> None:
            self._failed(active, key, attempt, reason)
            self._forget(active)

        attempt.stop(reason)
        self._alarm.after(self._grace_s, abandon)


class _Handle:
    """A step's line to its run (`StepHandle`). Of reports that come thick and fast only some are written down."""

    _EVERY_S = 0.1
    _EVERY_PERCENT = 10

    def __init__(self, active: ActiveRun, key: str, attempt: Attempt) -> None:
        self._active = active
        self._key = key
        self._attempt = attempt
        self._told = (-self._EVERY_PERCENT, 0.0)

    def progress(self, percent: int, message: str = "") -> None:
        """Report progress; raises StepStopped if the step is to end."""
        self._attempt.check()
        told, at = self._told
        now = time.monotonic()
        if percent - told >= self._EVERY_PERCENT or now - at >= self._EVERY_S:
            self._told = (percent, now)
            self._active.progress(self._key, self._attempt, percent, message)


def _params_json(payload: dict[str, Any], context: Context) -> bytes:
    if "blob" in payload:
        return context.blobs.get(payload["blob"])
    return json.dumps(payload["params"]).encode()


def _idempotency(step: str, params: bytes) -> str:
    """Return the digest of a step's name and its whole parameters: equal for calls that must have equal results."""
    return "sha256:" + hashlib.sha256(step.encode() + b"\0" + params).hexdigest()


def _wait_for_end(active: ActiveRun, at_most_s: float) -> None:
    with active.changed:
        active.changed.wait_for(lambda: active.state.ended, timeout=at_most_s)


def _step_error(key: str, error: Exception) -> StepError:
    kind = type(error).__name__
    if isinstance(error, KubeprobeError):
        return StepError(kind=kind, message=str(error), exit_status=error.exit_status)
    message = f"step {key} met a bug of this program ({kind}: {error}): please report it"
    return StepError(kind=kind, message=message, trace="".join(traceback.format_exception(error)))
