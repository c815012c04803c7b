"""What can be wrong with a command line beyond what its parser sees."""

from pathlib import Path

from tasks.skoop.errors import KubeprobeError, RequestError


class OptionsClash(RequestError):
    """Options are missing, or do not go together."""

    def __init__(self, problem: str, advice: str) -> None:
        self.problem = problem
        self.advice = advice
        super().__init__(f"{problem}; {advice}")


class PairsUnreadable(RequestError):
    """A file of questions has a line that is none."""

    def __init__(self, file: Path, line: int, problem: str) -> None:
        self.file = file
        self.line = line
        self.problem = problem
        where = f"{file}:{line}" if line else str(file)
        super().__init__(
            f"{where}: {problem}; each line has to be a JSON object such as "
            '{"src": "shop/client", "dst": "svc/shop/web", "dport": 80, "proto": "tcp"}'
        )


class SourceMissing(RequestError):
    """A file or folder that was named is not there, or is the other kind."""

    def __init__(self, path: Path, wanted: str) -> None:
        self.path = path
        self.wanted = wanted
        super().__init__(f"{path} is not {wanted}; check the path")


class DemoFailed(KubeprobeError):
    """The demonstration did not show what it should."""

    def __init__(self, step: str, problem: str) -> None:
        self.step = step
        self.problem = problem
        super().__init__(f"the demonstration stopped while it {step}: {problem}")
