"""What a workflow is: steps, what each needs, and how values flow between them. Pure: nothing here runs anything.

A `Step` puts a `StepSpec` into a DAG: every field of its parameters is bound to where the value comes from. A step with `each`
fans out, one instance per element of a list that an earlier step returned; steps that take its results with `result` go on
element by element; one that takes them with `gather` closes the fan-out. Fan-outs nest. `Dag` checks all of it when built, so
that a run cannot stumble over a DAG that does not fit together.

The order is checked with the standard library's graphlib; the networkx graph is made on demand (`Dag.graph`), because importing
networkx takes longer than most diagnoses.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tasks.skoop.specs import Message, StepSpec
from workflows.errors import DagError
from workflows.fitting import TypeForm, element_type, field_types, fits, list_of, or_none, required_fields, show

if TYPE_CHECKING:
    import networkx

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Param:
    """A field of the run's parameters."""

    field: str


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an earlier step, or one field of it ("": all). Where that step fans out: of the same element."""

    step: str
    field: str = ""


@dataclass(frozen=True, slots=True)
class Gather:
    """A list with the result (or one field) of every instance of a step that fans out; skipped ones are left out."""

    step: str
    field: str = ""


@dataclass(frozen=True, slots=True)
class Each:
    """The element that this instance of a fanned-out step is for."""


@dataclass(frozen=True, slots=True)
class Const:
    """A value that the DAG itself fixes."""

    value: object


Ref = Param | Result | Gather | Each | Const

EACH = Each()


def param(name: str) -> Param:
    """Bind to a field of the run's parameters."""
    return Param(name)


def result(step: str, name: str = "") -> Result:
    """Bind to a step's result or a field of it."""
    return Result(step, name)


def gather(step: str, name: str = "") -> Gather:
    """Bind to the list of all results (or of a field of theirs) of a step that fans out."""
    return Gather(step, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often a step is tried, and how long to wait in between: `delay_s`, then each time `factor` longer, at most `max_delay_s`.

    A request that is wrong stays wrong: a RequestError is never tried again.
    """

    attempts: int = 1
    delay_s: float = 1.0
    factor: float = 2.0
    max_delay_s: float = 60.0

    def pause_s(self, attempt: int) -> float:
        """Return how long to wait after that attempt (from 1) failed, in seconds."""
        return float(min(self.max_delay_s, self.delay_s * self.factor ** (attempt - 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a DAG.

    `bind` says for each field of the parameters where its value comes from (fields with a default may be left out). `each` is
    the list to fan out over. `when` is a truth value; where it is false the step is skipped, and what takes its result gets
    None. `after` names steps to wait for without taking their results. `time_limit_s` is for one attempt. `queue` names the
    kind of worker: `io` or `cpu`.
    """

    name: str
    spec: StepSpec[Any, Any]
    bind: Mapping[str, Ref] = field(default_factory=dict)
    each: Param | Result | None = None
    when: Param | Result | None = None
    after: tuple[str, ...] = ()
    retry: Retry = Retry()
    time_limit_s: float = 300.0
    queue: str = "io"

    @property
    def refs(self) -> tuple[Ref, ...]:
        """Every reference of this step, bound fields first."""
        return (*self.bind.values(), *(ref for ref in (self.each, self.when) if ref is not None))

    @property
    def needs(self) -> frozenset[str]:
        """Names of the steps that come before."""
        return frozenset(ref.step for ref in self.refs if isinstance(ref, Result | Gather)) | frozenset(self.after)


Scope = tuple[str, ...]
"""The fan-outs that a step is inside of, outermost first (its own last). An instance has one index for each."""


class Dag:
    """A workflow that is known to fit together.

    `params` is the model of a run's parameters, `result` names the step whose result is the run's. Raises DagError.
    """

    def __init__(
        self, *, name: str, params: type[Message], steps: Sequence[Step], result: str, summary: str = ""
    ) -> None:
        self.name = name
        self.params = params
        self.result = result
        self.summary = summary
        self.steps: Mapping[str, Step] = MappingProxyType(_by_name(name, steps))
        self.order: tuple[str, ...] = _order(name, self.steps)
        self.scopes: Mapping[str, Scope] = MappingProxyType(_scopes(name, self.steps, self.order))
        _check_types(self)
        _check_end(self)

    def __repr__(self) -> str:
        return f"Dag({self.name}: {', '.join(self.order)})"

    def step_ref_scope(self, step: str) -> Scope:
        """Return the scope in which a step's references are read: its own without the fan-out it opens itself."""
        return self.scopes[step][:-1] if self.steps[step].each is not None else self.scopes[step]

    @property
    def digest(self) -> str:
        """A digest of all that decides how a run goes: two programs with the same digest can take up each other's runs."""
        text = json.dumps(
            [_describe(self.steps[name]) for name in self.order] + [self.name, self.result], sort_keys=True
        )
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def edges(self) -> Iterator[tuple[str, str, str]]:
        """Yield (from, to, kind) in order: kind is `result`, `gather`, `each`, `when` or `after`; one edge for each kind."""
        for name in self.order:
            step = self.steps[name]
            kinds: dict[str, list[Ref | None]] = {
                "each": [step.each],
                "when": [step.when],
                "result": [ref for ref in step.bind.values() if isinstance(ref, Result)],
                "gather": [ref for ref in step.bind.values() if isinstance(ref, Gather)],
            }
            seen: set[tuple[str, str]] = set()
            for kind, refs in kinds.items():
                for ref in refs:
                    if isinstance(ref, Result | Gather) and (ref.step, kind) not in seen:
                        seen.add((ref.step, kind))
                        yield ref.step, name, kind
            for before in step.after:
                yield before, name, "after"

    def graph(self) -> "networkx.DiGraph[str]":
        """Return the DAG as a networkx graph: nodes are step names with attribute `step`, edges carry `kinds`."""
        import networkx  # takes 0.7 s to import; only pictures and analyses need it

        graph: networkx.DiGraph[str] = networkx.DiGraph(name=self.name)
        for name in self.order:
            graph.add_node(name, step=self.steps[name])
        for source, target, kind in self.edges():
            kinds = graph.edges[source, target]["kinds"] if graph.has_edge(source, target) else ()
            graph.add_edge(source, target, kinds=(*kinds, kind))
        return graph


def _describe(step: Step) -> list[object]:
    bind = {name: repr(ref) for name, ref in step.bind.items()}
    return [step.name, step.spec.name, bind, repr(step.each), repr(step.when), list(step.after)]


def _by_name(dag: str, steps: Sequence[Step]) -> dict[str, Step]:
    if not steps:
        raise DagError(dag, "", "it has no steps")
    found: dict[str, Step] = {}
    for step in steps:
        if not _NAME.fullmatch(step.name):
            raise DagError(dag, step.name, "a name has lower-case letters, digits and single dashes, a letter first")
        if step.name in found:
            raise DagError(dag, step.name, "two steps have this name")
        if step.retry.attempts < 1 or step.retry.delay_s < 0 or step.retry.factor < 1:
            raise DagError(dag, step.name, f"{step.retry} never tries, or waits backwards")
        if not step.time_limit_s > 0:
            raise DagError(dag, step.name, f"the time limit is {step.time_limit_s:g} s: it must be more than 0")
        found[step.name] = step
    for step in steps:
        for needed in sorted(step.needs):
            if needed not in found:
                raise DagError(
                    dag, step.name, f"it needs {needed}, which is no step here; there are {', '.join(found)}"
                )
    return found


def _order(dag: str, steps: Mapping[str, Step]) -> tuple[str, ...]:
    sorter = TopologicalSorter({name: sorted(step.needs) for name, step in steps.items()})
    try:
        return tuple(sorter.static_order())
    except CycleError as error:
        cycle: list[str] = error.args[1]
        raise DagError(dag, cycle[0], f"it needs itself: {' <- '.join(reversed(cycle))}") from None


def _scopes(dag: str, steps: Mapping[str, Step], order: Sequence[str]) -> dict[str, Scope]:
    """Find for each step inside which fan-outs it is, and check that its references can be read there."""
    scopes: dict[str, Scope] = {}
    for name in order:
        step = steps[name]
        scope: Scope = ()
        for ref in step.refs:
            if not isinstance(ref, Result | Gather):
                continue
            read = scopes[ref.step]
            if isinstance(ref, Gather):
                if not read:
                    raise DagError(dag, name, f"it gathers {ref.step}, which does not fan out: take its result")
                read = read[:-1]
            shorter, longer = sorted((scope, read), key=len)
            if longer[: len(shorter)] != shorter:
                raise DagError(
                    dag, name, f"it joins elements of fan-outs {scope[-1]} and {read[-1]}: gather one of them first"
                )
            scope = longer
        for before in step.after:
            opened = scopes[before]
            if opened[:-1] != scope[: len(opened[:-1])]:
                raise DagError(
                    dag, name, f"it waits for {before} inside {' of '.join(opened[::-1])}: gather level by level"
                )
        scopes[name] = (*scope, name) if step.each is not None else scope
    return scopes


def _may_be_skipped(dag: Dag, name: str) -> bool:
    return dag.steps[name].when is not None


def _ref_type(dag: Dag, step: Step, ref: Ref) -> TypeForm:
    """Return the type that a reference gives. Raises DagError where it points to nothing."""
    match ref:
        case Param(name):
            known = field_types(dag.params)
            if name not in known:
                raise DagError(dag.name, step.name, f"the run has no parameter {name}; it has {', '.join(known)}")
            return known[name]
        case Result(before, name) | Gather(before, name):
            model = dag.steps[before].spec.result
            known = field_types(model)
            if name and name not in known:
                raise DagError(dag.name, step.name, f"{before} returns no {name}; it returns {', '.join(known)}")
            kind = known[name] if name else model
            if isinstance(ref, Gather):
                return list_of(kind)
            return or_none(kind) if _may_be_skipped(dag, before) else kind
        case Each():
            if step.each is None:
                raise DagError(dag.name, step.name, "it takes EACH but does not fan out: give `each`")
            return element_type(_ref_type(dag, step, step.each))
        case Const(value):
            return type(value)


def _check_types(dag: Dag) -> None:
    for name in dag.order:
        step = dag.steps[name]
        if step.each is not None:
            kind = _ref_type(dag, step, step.each)
            if element_type(kind) is None:
                raise DagError(dag.name, name, f"it fans out over {step.each}, which is {show(kind)} and not a list")
            if EACH not in step.bind.values():
                raise DagError(
                    dag.name, name, "it fans out but binds EACH to no parameter: all instances would be the same"
                )
        if step.when is not None:
            kind = _ref_type(dag, step, step.when)
            if not fits(kind, bool | None):
                raise DagError(dag.name, name, f"its condition {step.when} is {show(kind)} and not true or false")
        wanted = field_types(step.spec.params)
        for target, ref in step.bind.items():
            if target not in wanted:
                raise DagError(
                    dag.name, name, f"{step.spec.name} has no parameter {target}; it has {', '.join(wanted)}"
                )
            kind = _ref_type(dag, step, ref)
            if not fits(kind, wanted[target]):
                raise DagError(dag.name, name, f"{target} takes {show(wanted[target])}, but {ref} gives {show(kind)}")
        for lacking in sorted(required_fields(step.spec.params) - set(step.bind)):
            raise DagError(dag.name, name, f"parameter {lacking} is bound to nothing")


def _check_end(dag: Dag) -> None:
    """Check that the run ends in one result and that no fan-out stays open."""
    if dag.result not in dag.steps:
        raise DagError(dag.name, dag.result, "it should give the run's result, but is no step here")
    needed = {before for step in dag.steps.values() for before in step.needs}
    for name in dag.order:
        if dag.scopes[name] and (name not in needed or name == dag.result):
            raise DagError(dag.name, name, f"the fan-out of {dag.scopes[name][-1]} ends open here: gather it")
    if _may_be_skipped(dag, dag.result):
        raise DagError(dag.name, dag.result, "it gives the run's result and so cannot have a condition")
