"""What every engine does, whatever it runs on. DAGs and callers know only this."""

from collections.abc import Iterator
from typing import Protocol

from tasks.skoop.context import Context
from tasks.skoop.specs import Message
from workflows.dag import Dag
from workflows.runs import Event, Run


class Engine(Protocol):
    """Runs DAGs. Safe to use from several threads."""

    @property
    def context(self) -> Context:
        """What steps are given; its blob store holds what the digests in parameters and results refer to."""
        ...

    def submit(self, dag: Dag, params: Message, *, asked_by: str = "", run_id: str = "") -> str:
        """Start a run and return its id (one is made if none is given).

        Raises ParamsDoNotFit, UnknownStep, RunExists, EngineClosed, StoreUnusable.
        """
        ...

    def watch(self, run_id: str, after: int = 0) -> Iterator[Event]:
        """Yield every change after that version, in order, as it happens; ends when the run has ended. Raises RunNotFound."""
        ...

    def run(self, run_id: str) -> Run:
        """Return the run as it is now. Raises RunNotFound, RunUnreadable."""
        ...

    def result(self, run_id: str) -> Message:
        """Return the result of a run that is done. Raises RunFailed, RunCancelled, RunNotEnded, RunNotFound."""
        ...

    def cancel(self, run_id: str) -> bool:
        """Start no more steps of a run and stop those that run; say whether there was anything to cancel. Raises RunNotFound."""
        ...

    def retry_from_failure(self, run_id: str) -> None:
        """Take up a run that failed or was cancelled: what is done stays done. Raises RunNotRetryable, RunNotFound."""
        ...

    def close(self) -> None:
        """Cancel what still runs and let go of everything."""
        ...
