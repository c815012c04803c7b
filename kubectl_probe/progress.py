"""How far is the run? A tree of its steps that moves while it runs; a line for each step that ends where nothing can move.

Written to standard error: standard output holds the result alone.
"""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from kubectl_probe.output import is_colourful, note

if TYPE_CHECKING:
    from workflows.runs import Event, StepRun

_MARKS = {"pending": "·", "running": "▸", "done": "✓", "failed": "✗", "skipped": "-", "cancelled": "-"}
_COLOURS = {"pending": "dim", "running": "cyan", "done": "green", "failed": "red", "skipped": "dim", "cancelled": "dim"}
_SHOWN_INSTANCES = 8


class ProgressLines:
    """Tells each step instance's end in a line: for logs and pipes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def __call__(self, event: "Event") -> None:
        """Take one change of the run."""
        for step in event.change.steps:
            if step.ended_at:
                note(f"{_MARKS[step.state]} {_name(step)} {step.state}{_took(step)}{_failure(step)}")


class ProgressTree:
    """Shows all steps with their instances, redrawn on every change."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._steps: dict[str, dict[str, StepRun]] = {}
        self._live: Any = None
        self._progress = 0

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(self._tree(), console=Console(stderr=True), refresh_per_second=8, transient=False)
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.update(self._tree())
        self._live.__exit__(kind, error, trace)

    def __call__(self, event: "Event") -> None:
        """Take one change of the run."""
        self._progress = event.change.progress
        for step in event.change.steps:
            self._steps.setdefault(step.step, {})[step.key] = step
        self._live.update(self._tree())

    def _tree(self) -> Any:  # noqa: ANN401 -- rich is not imported for its types
        from rich.text import Text
        from rich.tree import Tree

        tree = Tree(Text(f"{self._title}  {self._progress} %", style="bold"))
        for name, instances in self._steps.items():
            runs = list(instances.values())
            if len(runs) == 1:
                tree.add(_line(runs[0]))
                continue
            done = sum(run.state.settled for run in runs)
            branch = tree.add(Text(f"{name}  {done}/{len(runs)}", style="green" if done == len(runs) else "cyan"))
            unsettled_first = sorted(runs, key=lambda run: run.state.settled)
            for run in unsettled_first[:_SHOWN_INSTANCES]:
                branch.add(_line(run))
            if len(runs) > _SHOWN_INSTANCES:
                branch.add(Text(f"… and {len(runs) - _SHOWN_INSTANCES} more", style="dim"))
        return tree


def watcher(title: str) -> ProgressTree | ProgressLines:
    """Return the tree where standard error is a terminal, else the lines."""
    return ProgressTree(title) if is_colourful(sys.stderr) else ProgressLines()


def _line(step: "StepRun") -> Any:  # noqa: ANN401 -- rich is not imported for its types
    from rich.text import Text

    text = Text(f"{_MARKS[step.state]} ", style=_COLOURS[step.state])
    text.append(_name(step))
    text.append(_took(step), style="dim")
    if step.state == "running" and step.progress:
        text.append(f"  {step.progress} %  {step.message}".rstrip(), style="cyan")
    return text.append(_failure(step), style="red")


def _name(step: "StepRun") -> str:
    return f"{step.step} {step.label}" if step.label and step.index else step.step


def _took(step: "StepRun") -> str:
    return f"  {step.ended_at - step.started_at:.2f} s" if step.ended_at and step.started_at else ""


def _failure(step: "StepRun") -> str:
    return f"  {step.error.message}" if step.error is not None else ""
