"""Celery, in the one place that knows it: an application with one task for each kind of step, and a worker in this process.

The application carries calls of steps and nothing else: which steps may start, what they gave and how often they are tried is
the run's record's business, so results are ignored and no chord is ever made (chords cost quadratically on in-memory back
ends, and a failing member leaves their callback waiting).

The worker in this process is Celery's own `WorkController` with two parts replaced, because the stock ones do not suit a
process that lives for a second:
- the memory transport sleeps between polls and shares its queues with everybody in the process; ours is woken by each message
  and belongs to one application;
- the thread pool finds its application through a process-wide default, and its threads keep the interpreter from ending; ours
  sets the application for each of its own threads, which are daemons.
"""

import os
import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

from celery import Celery
from celery import _state as celery_state
from celery.concurrency.base import BasePool, apply_target
from celery.utils.log import get_logger
from celery.worker import WorkController
from kombu.transport import memory
from kombu.transport.virtual import BrokerState

logger = get_logger(__name__)

Execute = Callable[[str, str, int, dict[str, Any]], None]
"""Runs one attempt at a step: run id, instance key, attempt (from 1), payload. Never raises but for bugs."""

QUEUES = ("io", "cpu")
"""Kinds of workers: `io` for what waits, `cpu` for what computes."""


class StepApp:
    """A Celery application with one task for each step name."""

    def __init__(self, steps: Iterable[str], execute: Execute, **config: object) -> None:
        self.celery = Celery("kubeprobe", set_as_current=False, autofinalize=False)
        self.celery.conf.update(
            task_serializer="json",
            accept_content=["json"],
            task_ignore_result=True,
            task_acks_late=True,
            task_reject_on_worker_lost=True,
            task_default_queue=QUEUES[0],
            worker_hijack_root_logger=False,
            worker_send_task_events=False,
            broker_connection_retry_on_startup=True,
            **config,
        )
        for name in steps:
            # Not shared: a shared task would be put into every application of this process, under the first one's function.
            self.celery.task(_task_function(execute), name=name, bind=True, shared=False)
        self.celery.finalize()
        self._producer_lock = threading.Lock()

    def call(self, step: str, queue: str, run_id: str, key: str, attempt: int, payload: dict[str, Any]) -> None:
        """Send one attempt at a step to the workers of that queue."""
        call = {"run": run_id, "key": key, "attempt": attempt, "payload": payload}
        task = self.celery.tasks[step]
        with self._producer_lock, self.celery.producer_or_acquire() as producer:
            task.apply_async(kwargs=call, queue=queue, producer=producer, task_id=f"{run_id}:{key}:{attempt}")


def _task_function(execute: Execute) -> Callable[..., None]:
    def step(_task: object, *, run: str, key: str, attempt: int, payload: dict[str, Any]) -> None:
        execute(run, key, attempt, payload)

    return step


def memory_app(steps: Iterable[str], execute: Execute) -> StepApp:
    """Return an application whose broker is this process's memory, for `InProcessWorker`."""
    return StepApp(
        steps,
        execute,
        broker_url="memory://localhost/",
        broker_transport=_memory_transport(),
        result_backend="cache+memory://",
        worker_prefetch_multiplier=0,
        worker_enable_remote_control=False,
        broker_heartbeat=0,
    )


def _memory_transport() -> type[memory.Transport]:
    """Return a memory transport with queues of its own whose reader sleeps until something is put into one of them."""
    woken = threading.Event()
    closing = threading.Event()

    class Channel(memory.Channel):
        queues: dict[str, Any] = {}

        def _put(self, queue: str, message: object, **kwargs: object) -> None:
            super()._put(queue, message, **kwargs)  # type: ignore[no-untyped-call]  # kombu has no types here
            woken.set()

    channel = Channel

    class Transport(memory.Transport):
        Channel = channel
        global_state = BrokerState()  # type: ignore[no-untyped-call]  # kombu has no types here
        cycle: Any

        @staticmethod
        def stop_reading() -> None:
            """Wake the reader, and let it sleep no more."""
            closing.set()
            woken.set()

        def drain_events(self, connection: object, timeout: float | None = None) -> None:  # type: ignore[override]  # noqa: ARG002  # kombu's
            """Deliver one message; raise TimeoutError if none came in that many seconds."""
            give_up = None if timeout is None else monotonic() + timeout
            while True:
                woken.clear()
                try:
                    self.cycle.get(self._deliver, timeout=timeout)
                except Empty:
                    left = None if give_up is None else give_up - monotonic()
                    if closing.is_set() or (left is not None and left <= 0) or not woken.wait(left):
                        raise TimeoutError from None
                else:
                    return

    return Transport


class InProcessWorker:
    """A Celery worker on threads of this process."""

    def __init__(self, app: StepApp, threads: int) -> None:
        self._app = app
        self._ready = threading.Event()
        self._controller = WorkController(
            app=app.celery,
            hostname=f"local@{os.getpid()}",
            pool_cls=_DaemonThreads,
            concurrency=threads,
            queues=list(QUEUES),
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            ready_callback=lambda _consumer: self._ready.set(),
        )
        self._thread = threading.Thread(target=self._controller.start, name="kubeprobe-worker", daemon=True)

    def start(self) -> None:
        """Start the worker and return when it takes calls."""
        before = celery_state.task_join_will_block
        self._thread.start()
        while not self._ready.wait(0.5):
            assert self._thread.is_alive(), "the in-process worker ended while it started"
        # Starting a pool makes `result.get()` an error in the whole process; our steps never join, others' code may.
        celery_state._set_task_join_will_block(before)

    def stop(self) -> None:
        """Stop the worker: nothing new is begun, and steps still running get a moment to end."""
        if self._thread.is_alive():
            self._controller.signal_consumer_close()
            self._app.celery.conf.broker_transport.stop_reading()
            self._controller.stop()
            self._thread.join()
        self._app.celery.close()


class _DaemonThreads(BasePool):  # type: ignore[misc]  # celery has no types here
    """A pool of daemon threads, started as they are needed, each with the application as its current one."""

    signal_safe = False
    body_can_be_buffer = False
    grace_s = 2.0

    def on_start(self) -> None:
        self._calls: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = threading.Semaphore(0)

    def on_apply(self, target: object, args: object = None, kwargs: object = None, **given: object) -> "_Accepted":
        self._calls.put((target, args, kwargs, given.get("callback"), given.get("accept_callback")))
        if not self._idle.acquire(blocking=False) and len(self._threads) < self.limit:
            thread = threading.Thread(target=self._work, name=f"kubeprobe-step-{len(self._threads) + 1}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return _Accepted()

    def on_stop(self) -> None:
        for _ in self._threads:
            self._calls.put(None)
        give_up = monotonic() + self.grace_s
        for thread in self._threads:
            thread.join(max(0.0, give_up - monotonic()))

    on_terminate = on_stop

    def _work(self) -> None:
        self.app.set_current()
        while (call := self._calls.get()) is not None:
            try:
                apply_target(*call)
            except Exception:  # the thread must survive a bug in the machinery
                logger.exception("a call to a step ended with an error")
            self._idle.release()


class _Accepted:
    """What the worker holds of a call it gave to the pool."""
