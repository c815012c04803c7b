"""What a reader says when its input is not what the tool prints."""

from tasks.skoop.errors import KubeprobeError


class ParseError(KubeprobeError):
    """Input that cannot be read: which file, where in it (line and column from 1), what is wrong and what to do.

    `line` and `column` are 0 where the fault has no place (an empty file).
    """

    exit_status = 2

    def __init__(self, source: str, line: int, column: int, problem: str, advice: str = "take the dump again") -> None:
        self.source = source
        self.line = line
        self.column = column
        self.problem = problem
        self.advice = advice
        place = f"{source}:{line}:{column}" if line else source
        super().__init__(f"{place}: {problem}; {advice}")
