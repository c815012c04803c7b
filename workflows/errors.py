"""What can go wrong around a run, beside what goes wrong in its steps. Messages are made of the fields and say what to do next."""

from tasks.skoop.errors import KubeprobeError, RequestError


class DagError(ValueError):
    """A DAG is not well made: a mistake of the program that builds it, found when it is built."""

    def __init__(self, dag: str, step: str, problem: str) -> None:
        self.dag = dag
        self.step = step
        self.problem = problem
        super().__init__(f"DAG {dag}, step {step}: {problem}" if step else f"DAG {dag}: {problem}")


class RunFailed(KubeprobeError):
    """A step of a run failed for good. `exit_status` is that of what failed in it."""

    def __init__(self, run_id: str, step: str, message: str, exit_status: int) -> None:
        self.run_id = run_id
        self.step = step
        self.exit_status = exit_status
        super().__init__(message)


class RunCancelled(KubeprobeError):
    """Somebody cancelled the run before it had a result."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"run {run_id} was cancelled: start it again")


class RunNotEnded(RequestError):
    """The run has no result yet."""

    def __init__(self, run_id: str, state: str) -> None:
        self.run_id = run_id
        self.state = state
        super().__init__(f"run {run_id} is {state}: wait for it to end, or watch it")


class RunNotFound(RequestError):
    """No run of that id is stored."""

    def __init__(self, run_id: str, where: str) -> None:
        self.run_id = run_id
        self.where = where
        super().__init__(f"there is no run {run_id} in {where}: check the id and the state directory")


class RunExists(RequestError):
    """A run of that id is stored already."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"run {run_id} exists already: choose another id, or leave the choice to the program")


class RunUnreadable(KubeprobeError):
    """A stored run cannot be read: damaged, or written by another version."""

    def __init__(self, run_id: str, problem: str) -> None:
        self.run_id = run_id
        self.problem = problem
        super().__init__(
            f"run {run_id} cannot be read ({problem}): read it with the version that wrote it, or remove it"
        )


class RunNotRetryable(RequestError):
    """A run cannot be taken up again."""

    def __init__(self, run_id: str, problem: str) -> None:
        self.run_id = run_id
        self.problem = problem
        super().__init__(f"run {run_id} cannot be retried: {problem}")


class UnknownStep(RequestError):
    """A DAG has a step that this engine has no function for."""

    def __init__(self, dag: str, spec: str, known: tuple[str, ...]) -> None:
        self.dag = dag
        self.spec = spec
        self.known = known
        super().__init__(f"DAG {dag} needs a step {spec}, which this program does not have; it has {', '.join(known)}")


class ParamsDoNotFit(RequestError):
    """The parameters given are not those that the DAG or step takes."""

    def __init__(self, target: str, problems: tuple[str, ...]) -> None:
        self.target = target
        self.problems = problems
        super().__init__(f"parameters of {target} do not fit: {'; '.join(problems)}")


class ResultTooLarge(KubeprobeError):
    """A step returned more than may travel between steps."""

    def __init__(self, step: str, size: int, limit: int) -> None:
        self.step = step
        self.size = size
        self.limit = limit
        super().__init__(
            f"step {step} returned {size} bytes, {limit} may travel: it must put the value into the blob store and return its digest"
        )


class ResultDoesNotFit(KubeprobeError):
    """A step returned something else than its spec says."""

    def __init__(self, step: str, given: str, wanted: str) -> None:
        self.step = step
        self.given = given
        self.wanted = wanted
        super().__init__(f"step {step} returned {given} where its spec says {wanted}: report this as a bug")


class StepTimedOut(KubeprobeError):
    """A step took longer than its limit."""

    def __init__(self, step: str, limit_s: float) -> None:
        self.step = step
        self.limit_s = limit_s
        super().__init__(
            f"step {step} took longer than its limit of {limit_s:g} s: ask for less at once, or raise the limit"
        )


class EngineClosed(KubeprobeError):
    """The engine was closed; it takes no more runs."""

    def __init__(self) -> None:
        super().__init__("the workflow engine is closed: start a new one")


class BlobMissing(KubeprobeError):
    """A blob is not in the store."""

    def __init__(self, digest: str, where: str) -> None:
        self.digest = digest
        self.where = where
        super().__init__(
            f"blob {digest} is not in {where}: it was never stored there or was collected as garbage; run again"
        )


class BlobTooLarge(KubeprobeError):
    """A blob is larger than the store takes."""

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(
            f"a blob of {size} bytes does not go into a store that takes {limit}: ask for less, or raise the limit"
        )


class BlobDamaged(KubeprobeError):
    """What is stored under a digest is not what was put there."""

    def __init__(self, digest: str, problem: str) -> None:
        self.digest = digest
        self.problem = problem
        super().__init__(f"blob {digest} is damaged ({problem}): remove it and run again")


class StoreUnusable(KubeprobeError):
    """A store of blobs or runs cannot be read or written: full, read-only, not permitted, not there."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path}: {problem}: free space or permissions, or choose another state directory")
