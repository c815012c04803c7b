"""A run while an engine moves it: one lock, the frontier, and the record that every move is written to before it counts.

Knows nothing of how steps are carried out: an engine asks for what may start, says who takes it up, and reports what came of it.
The first failure that is not retried ends the run: nothing more is started, and what runs may finish, so that a retry finds its
result. Reports of attempts that no longer count (given up, cancelled, delivered twice) change nothing.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable

from msgspec import Raw
from msgspec.structs import replace

from tasks.skoop.errors import KubeprobeError
from workflows.dag import Dag
from workflows.engines.interrupt import Attempt
from workflows.errors import RunCancelled
from workflows.frontier import Frontier
from workflows.runs import Change, Run, RunState, StepError, StepRun, StepState
from workflows.runstore import RunStore


class ActiveRun:
    """A run that this engine moves. `changed` is its lock and wakes watchers."""

    def __init__(self, dag: Dag, run: Run, frontier: Frontier, store: RunStore, clock: Callable[[], float]) -> None:
        self.id = run.id
        self.dag = dag
        self.asked_by = run.asked_by
        self.state = RunState.RUNNING
        self.broken: KubeprobeError | None = None
        self.changed = threading.Condition()
        self._version = run.version
        self._frontier = frontier
        self._store = store
        self._clock = clock
        self._instances: dict[str, StepRun] = dict(run.steps)
        self._running: dict[str, Attempt] = {}
        self._cancelling = False
        self._error: StepError | None = None
        self._failed_step = ""

    def begin(self) -> list[StepRun]:
        """Record that the run goes on; return the instances to be carried out. Raises StoreUnusable."""
        with self.changed:
            ready = self._record(self._frontier.start(), state=RunState.RUNNING)
        if self.broken is not None:
            raise self.broken
        return ready

    def params_of(self, instance: StepRun) -> bytes:
        """Return an instance's parameters as canonical JSON."""
        with self.changed:
            return self._frontier.params_of(instance)

    @property
    def version(self) -> int:
        """The version of the run after the last move."""
        return self._version

    def take_up(self, key: str, number: int, idempotency: str) -> tuple[StepRun, Attempt] | None:
        """Record that attempt `number` (from 1) at an instance begins; None if it is not to be begun (any more)."""
        with self.changed:
            instance = self._instances.get(key)
            if (
                instance is None
                or instance.state is not StepState.PENDING
                or instance.attempts != number - 1
                or not self._going
            ):
                return None
            attempt = self._running[key] = Attempt()
            running = replace(
                instance,
                state=StepState.RUNNING,
                attempts=number,
                started_at=self._clock(),
                idempotency=idempotency,
                error=None,
            )
            self._record([running])
            return running, attempt

    def progress(self, key: str, attempt: Attempt, percent: int, message: str) -> None:
        """Record how far an attempt is, if that is news."""
        with self.changed:
            instance = self._instances[key]
            news = (min(100, max(instance.progress, percent)), message)
            if self._running.get(key) is attempt and news != (instance.progress, instance.message):
                self._record([replace(instance, progress=news[0], message=news[1])])

    def succeed(self, key: str, attempt: Attempt, result: bytes) -> list[StepRun]:
        """Record a result (JSON); return the instances to be carried out now."""
        with self.changed:
            if self._running.get(key) is not attempt:
                return []
            del self._running[key]
            digest = "sha256:" + hashlib.sha256(result).hexdigest()
            done = replace(
                self._instances[key],
                state=StepState.DONE,
                ended_at=self._clock(),
                progress=100,
                result=Raw(result),
                result_digest=digest,
            )
            return self._record([done, *(self._frontier.settle(done) if self._going else ())])

    def fail(self, key: str, attempt: Attempt, error: StepError, *, retryable: bool) -> tuple[StepRun, float] | None:
        """Record that an attempt failed; return the instance and the pause in seconds if it is to be tried again."""
        with self.changed:
            if self._running.get(key) is not attempt:
                return None
            del self._running[key]
            instance = replace(self._instances[key], ended_at=self._clock(), error=error)
            retry = self.dag.steps[instance.step].retry
            if self._cancelling:
                self._record([replace(instance, state=StepState.CANCELLED)])
            elif self._going and retryable and instance.attempts < retry.attempts:
                again = replace(instance, state=StepState.PENDING, progress=0, message="")
                self._record([again])
                return again, retry.pause_s(again.attempts)
            else:
                self._fail_run(replace(instance, state=StepState.FAILED), error)
            return None

    def give_up(self, error: StepError) -> None:
        """Record that the run cannot go on, through no step's fault."""
        with self.changed:
            if self._going:
                self._error = error
                self._record(self._unstarted("the run cannot go on"))

    def cancel(self) -> list[tuple[str, Attempt]] | None:
        """Record that the run is cancelled: no step starts after this. Return the attempts to be stopped; None if it has ended."""
        with self.changed:
            if self.state.ended:
                return None
            self._cancelling = True
            self._record(self._unstarted("cancelled"))
            return list(self._running.items())

    @property
    def _going(self) -> bool:
        return self._error is None and not self._cancelling and not self.state.ended

    def _fail_run(self, failed: StepRun, error: StepError) -> None:
        if self._error is None:
            self._error, self._failed_step = error, failed.key
        self._record([failed, *self._unstarted(f"not started: {self._failed_step} failed")])

    def _unstarted(self, why: str) -> list[StepRun]:
        pending = [instance for instance in self._instances.values() if instance.state is StepState.PENDING]
        return [replace(instance, state=StepState.CANCELLED, message=why) for instance in pending]

    def _ending(self) -> RunState | None:
        """Return the state in which the run ends with this move, None if it goes on."""
        if self._running or self.state.ended:
            return None
        if self._cancelling:
            return RunState.CANCELLED
        if self._error is not None:
            return RunState.FAILED
        return RunState.DONE if self._frontier.complete else None

    def _record(self, steps: Iterable[StepRun], state: RunState | None = None) -> list[StepRun]:
        """Write a move to the store, then make it; return those of its steps that are to be carried out."""
        moved = tuple(steps)
        self._instances.update((step.key, step) for step in moved)
        try:
            while not self._store.append(self.id, change := self._change(moved, self._ending() or state)):
                self._follow()
        except KubeprobeError as error:
            self.broken = error
            self.state = RunState.FAILED
        else:
            self._version = change.version
            self.state = change.state or self.state
        self.changed.notify_all()
        return [step for step in moved if step.state is StepState.PENDING] if self._going else []

    def _change(self, steps: tuple[StepRun, ...], state: RunState | None) -> Change:
        partly = {key: (self._instances[key].step, self._instances[key].progress) for key in self._running}
        failed = state is RunState.FAILED
        return Change(
            version=self._version + 1,
            at=self._clock(),
            steps=steps,
            state=state,
            progress=self._frontier.progress(partly),
            error=self._error if failed else None,
            failed_step=self._failed_step if failed else "",
        )

    def _follow(self) -> None:
        """Take in what somebody else wrote into the record: all that others may do to a run that goes on is to cancel it."""
        for change in self._store.changes(self.id, self._version):
            self._version = change.version
            if change.state is RunState.CANCELLED:
                self._cancelling = True
                self.state = change.state
                for attempt in self._running.values():
                    attempt.stop(RunCancelled(self.id))
