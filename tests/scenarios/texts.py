"""Where the scenario files are, and how expected traces are put into one."""

from collections.abc import Sequence
from pathlib import Path

from tests.scenarios.scenario import EXPECT, Scenario

FOLDER = Path(__file__).parent / "cases"
CASES = sorted(FOLDER.rglob("*.txt"))


def rewritten(text: str, scenario: Scenario, traces: Sequence[Sequence[str]]) -> str:
    """Return a file's text with these traces in place of those that it expects."""
    by_line = {trial.number: trace for trial, trace in zip(scenario.trials, traces, strict=True)}
    lines: list[str] = []
    expecting = False
    for number, line in enumerate(text.splitlines()):
        if line.strip() == EXPECT:
            expecting = True
            continue
        if expecting and line[:1] in (" ", "\t"):
            continue
        expecting = False
        lines.append(line)
        if number in by_line:
            lines += [EXPECT, *(f"  {one}" for one in by_line[number])]
    return "\n".join(lines) + "\n"
