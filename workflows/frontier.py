"""Which step instances may start now? The explicit state of a run: told what came of an instance, it says what follows.

Pure and without a clock: the same DAG, parameters and results always unfold in the same way, so an engine that lost its memory
gets it back from the run's record (`known`). Every instance is looked at once when it appears and once when it is settled; the
cost of a run is linear in its instances, where chords pay for each one again at every completion.

Words: a step is *placed* at each index of the scope in which it reads its references; once all that it needs there is settled
it is *opened*: its condition skips it, or it unfolds and its instances appear. A step with `each` at index `b` has the instances
`(*b, 0)`, `(*b, 1)`, …; everything inside of that fan-out is placed at the same indices.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from workflows.dag import Const, Dag, Each, Gather, Param, Ref, Result, Step
from workflows.runs import StepRun, StepState, instance_key

Index = tuple[int, ...]
Need = tuple[str, Index, bool]
"""(step, index, False): that instance of the step; (step, index, True): all of its instances in the fan-out at that index."""


class Frontier:
    """The state of one run.

    `params` are the run's parameters as JSON values; `known` is what the record of an earlier try says: what is done there is
    taken as it is and not run again.
    """

    def __init__(self, dag: Dag, params: Mapping[str, Any], known: Mapping[str, StepRun] | None = None) -> None:
        self._dag = dag
        self._params = params
        self._known = known or {}
        self._tally = _Tally(dag)
        self._results: dict[tuple[str, Index], Any] = {}
        self._elements: dict[tuple[str, Index], Any] = {}
        self._labels: dict[tuple[str, Index], str] = {}
        self._skipped: set[tuple[str, Index]] = set()
        self._settled: set[Need] = set()
        self._lacking: dict[tuple[str, Index], int] = {}
        self._listeners: dict[Need, list[tuple[str, Index]]] = defaultdict(list)
        self._width: dict[tuple[str, Index], int] = {}
        self._finished_of: dict[tuple[str, Index], int] = defaultdict(int)
        self._appeared: list[StepRun] = []
        self._placed_in: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for name in dag.order:
            self._placed_in[dag.step_ref_scope(name)].append(name)

    def start(self) -> list[StepRun]:
        """Return the instances that are there from the beginning: pending ones are to be run, skipped ones to be recorded."""
        self._place_all((), ())
        return self._take()

    def settle(self, done: StepRun) -> list[StepRun]:
        """Take in an instance that is done; return those that appear through it, as `start` does. Twice is as good as once."""
        if (done.step, done.index) not in self._results:
            self._finish(done)
        return self._take()

    @property
    def complete(self) -> bool:
        """Whether every step is settled."""
        return self._tally.obligations == 0

    @property
    def result(self) -> Any:  # noqa: ANN401  # JSON
        """The run's result as JSON values, once complete."""
        return self._results[self._dag.result, ()]

    def progress(self, running: Mapping[str, tuple[str, int]] | None = None) -> int:
        """Return how far the run is, 0 to 100, never falling; `running` maps instances to their step and own progress."""
        return self._tally.progress(running or {})

    def params_of(self, instance: StepRun) -> bytes:
        """Return the parameters of an instance as canonical JSON: keys sorted, no spaces."""
        step = self._dag.steps[instance.step]
        values = {name: self._value(step, ref, instance.index) for name, ref in step.bind.items()}
        return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def _take(self) -> list[StepRun]:
        appeared, self._appeared = self._appeared, []
        return appeared

    def _place_all(self, scope: tuple[str, ...], index: Index) -> None:
        for name in self._placed_in[scope]:
            self._tally.placed(name)
        for name in self._placed_in[scope]:
            lacking = {need for need in self._needs(name, index) if need not in self._settled}
            for need in lacking:
                self._listeners[need].append((name, index))
            self._lacking[name, index] = len(lacking)
            if not lacking:
                self._open(name, index)

    def _needs(self, name: str, index: Index) -> Iterator[Need]:
        scopes = self._dag.scopes
        for ref in self._dag.steps[name].refs:
            if isinstance(ref, Result):
                yield ref.step, index[: len(scopes[ref.step])], False
            elif isinstance(ref, Gather):
                yield ref.step, index[: len(scopes[ref.step]) - 1], True
        here = self._dag.step_ref_scope(name)
        for before in self._dag.steps[name].after:
            scope = scopes[before]
            inside = here[: len(scope)] == scope
            yield before, index[: len(scope) if inside else len(scope) - 1], not inside

    def _fire(self, need: Need) -> None:
        self._settled.add(need)
        for name, index in self._listeners.pop(need, ()):
            self._lacking[name, index] -= 1
            if not self._lacking[name, index]:
                self._open(name, index)

    def _open(self, name: str, index: Index) -> None:
        step = self._dag.steps[name]
        wanted = step.when is None or bool(self._value(step, step.when, index))
        scope = self._dag.scopes[name]
        if step.each is None:
            self._appear(name, index, self._labels[scope[-1], index] if scope else "", wanted=wanted)
            return
        listing: Sequence[Any] = (self._value(step, step.each, index) or ()) if wanted else ()
        if not wanted:
            self._appeared.append(_instance(name, index, "", StepState.SKIPPED))
        inside = [other for other in self._dag.order if self._dag.scopes[other] == scope]
        for other in inside:
            self._width[other, index] = len(listing)
        self._tally.opened(name)
        for position, element in enumerate(listing):
            instance = (*index, position)
            self._elements[name, instance] = element
            self._labels[name, instance] = _label(element, position)
            self._appear(name, instance, self._labels[name, instance], wanted=True)
        for position in range(len(listing)):
            self._place_all(scope, (*index, position))
        if not listing:
            for other in inside:
                self._group_settled(other, index)

    def _appear(self, name: str, index: Index, label: str, *, wanted: bool) -> None:
        self._tally.appeared(name)
        known = self._known.get(instance_key(name, index))
        if known is not None and known.state is StepState.DONE and wanted:
            self._finish(known)
            return
        instance = _instance(name, index, label, StepState.PENDING if wanted else StepState.SKIPPED)
        self._appeared.append(instance)
        if not wanted:
            self._finish(instance)

    def _finish(self, done: StepRun) -> None:
        name, index = done.step, done.index
        self._tally.finished(name)
        if done.state is StepState.SKIPPED:
            self._skipped.add((name, index))
        self._results[name, index] = msgspec.json.decode(done.result)
        if self._dag.steps[name].each is None:
            self._tally.discharge()
        self._fire((name, index, False))
        if index:
            group = index[:-1]
            self._finished_of[name, group] += 1
            if self._finished_of[name, group] == self._width[name, group]:
                self._group_settled(name, group)

    def _group_settled(self, name: str, index: Index) -> None:
        if self._dag.steps[name].each is not None:
            self._tally.discharge()
        self._fire((name, index, True))

    def _value(self, step: Step, ref: Ref, index: Index) -> Any:  # noqa: ANN401  # JSON
        match ref:
            case Param(field):
                return self._params[field]
            case Const(value):
                return value
            case Each():
                return self._elements[step.name, index]
            case Result(before, field):
                return _pick(self._results[before, index[: len(self._dag.scopes[before])]], field)
            case Gather(before, field):
                group = index[: len(self._dag.scopes[before]) - 1]
                members = ((before, (*group, position)) for position in range(self._width[before, group]))
                return [_pick(self._results[member], field) for member in members if member not in self._skipped]


class _Tally:
    """How much of a run there is and how much of it is settled.

    `obligations` counts placements that are not settled: no more can appear once there are none, since what is inside of a
    fan-out is placed when the fan-out opens.
    """

    def __init__(self, dag: Dag) -> None:
        self.obligations = 0
        self._dag = dag
        self._appeared = dict.fromkeys(dag.order, 0)
        self._finished = dict.fromkeys(dag.order, 0)
        self._placed = dict.fromkeys(dag.order, 0)
        self._opened = dict.fromkeys(dag.order, 0)
        self._best = 0

    def placed(self, name: str) -> None:
        self.obligations += 1
        self._placed[name] += 1

    def opened(self, name: str) -> None:
        self._opened[name] += 1

    def appeared(self, name: str) -> None:
        self._appeared[name] += 1

    def finished(self, name: str) -> None:
        self._finished[name] += 1

    def discharge(self) -> None:
        self.obligations -= 1

    def progress(self, running: Mapping[str, tuple[str, int]]) -> int:
        if self.obligations == 0:
            return 100
        partly: dict[str, float] = defaultdict(float)
        for step, percent in running.values():
            partly[step] += percent / 100
        share = sum(self._share(name, partly[name]) for name in self._dag.order) / len(self._dag.order)
        self._best = max(self._best, min(99, int(share * 100)))
        return self._best

    def _share(self, name: str, partly: float) -> float:
        """Return how much of a step is done, 0 to 1: of the instances that are there, in proportion to the fan-outs that are open."""
        known = 1.0
        for fan_out in self._dag.scopes[name]:
            known *= self._opened[fan_out] / self._placed[fan_out] if self._placed[fan_out] else 0.0
        if not self._appeared[name]:
            return known if self._dag.scopes[name] else 0.0
        return known * (self._finished[name] + partly) / self._appeared[name]


def _instance(name: str, index: Index, label: str, state: StepState) -> StepRun:
    return StepRun(key=instance_key(name, index), step=name, index=index, label=label, state=state)


def _pick(value: Any, field: str) -> Any:  # noqa: ANN401  # JSON
    return value[field] if field and value is not None else value


def _label(element: Any, position: int) -> str:  # noqa: ANN401  # JSON
    """Return what to call an instance: the element itself if it is text or a number, else its `label`, else its position."""
    if isinstance(element, str | int | float):
        return str(element)
    return str(element.get("label", position + 1)) if isinstance(element, dict) else str(position + 1)
