"""Which fault is the cause? The remedy of each suspicion is applied to a copy of the state and the question asked again.

Only what turns the answer is a root cause. Candidates are what the assertions found and what the ends of the failing walks
suggest, those nearest to the place of the drop first. If none alone turns the answer, blockers are removed one after another
as the walk meets them, and the set is cut down to what is needed. Deterministic, and bounded in the number of trials.
"""

from collections.abc import Callable, Iterable, Sequence

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.diagnosis import Diagnosis, RootCause
from tasks.skoop.model.endpoint import Question
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.suspicion import AddSocket, Change, Suspicion
from tasks.skoop.model.trace import Outcome, Place, Stage, View
from tasks.skoop.network import SEVERITY, Network
from tasks.skoop.remedy import RemedyError, apply, in_order
from tasks.skoop.walk_ends import failing_walks, suspicions_from_walks

Diagnose = Callable[[ClusterState, Question], Diagnosis]
"""Asks one question of one state, without looking for causes."""

MAX_TRIALS = 80
"""Questions that are asked again, at most, to explain one answer."""
MAX_ALONE = 24
"""Candidates that are tried alone at one depth."""
MAX_BLOCKERS = 4
"""Blockers on one way that are removed one after another."""
NEAR = 2
"""Once a cause is proven, only candidates as near to the drop as this are tried as alternatives."""
ENOUGH = 3
"""Alternative root causes after which no more are looked for."""
TURNED = 1e-3
"""Chance of a bad view below which an answer counts as turned."""


class Candidate(Struct, frozen=True, kw_only=True):
    """A suspicion with a remedy that can be tried; `rank` 0 is at the place of the drop, larger is farther away."""

    suspicion: Suspicion
    rank: int

    @property
    def changes(self) -> tuple[Change, ...]:
        """What the remedy changes."""
        return self.suspicion.remedy.changes if self.suspicion.remedy is not None else ()


def is_good(diagnosis: Diagnosis) -> bool:
    """Say whether there is nothing to explain: the client is certainly connected, and data get through."""
    return diagnosis.verdict == Outcome.DELIVERED


def badness(diagnosis: Diagnosis) -> float:
    """Return the chance (0 to 1) that the client is refused, gets an error, hears nothing, or is stalled."""
    sees = diagnosis.client_sees
    good = sees.get(View.CONNECTED, 0.0) + sees.get(View.UNKNOWN, 0.0)
    stalled = sum(outcome.probability for outcome in diagnosis.outcomes if outcome.stalls)
    return min(1.0, max(0.0, 1.0 - good) + stalled)


def root_causes(
    diagnose: Diagnose,
    state: ClusterState,
    question: Question,
    diagnosis: Diagnosis,
    suspicions: Sequence[Suspicion],
    *,
    max_trials: int = MAX_TRIALS,
) -> tuple[RootCause, ...]:
    """Return the root causes of a bad answer, likeliest first: alternatives, each of which turns it.

    Empty for a good answer, and where nothing that was tried turns it. `turns_to` is what the client sees then.
    """
    return CauseFinder(diagnose, state, suspicions, max_trials=max_trials).find(question, diagnosis)


class CauseFinder:
    """Explains answers about one state; the worlds after each remedy are kept for further questions."""

    def __init__(
        self, diagnose: Diagnose, state: ClusterState, suspicions: Sequence[Suspicion], *, max_trials: int = MAX_TRIALS
    ) -> None:
        self._diagnose = diagnose
        self._state = state
        self._suspicions = tuple(suspicions)
        self._max_trials = max_trials
        self._worlds: dict[bytes, ClusterState | None] = {}
        self._networks: dict[bytes, Network] = {}
        self._trials = 0

    def find(self, question: Question, diagnosis: Diagnosis) -> tuple[RootCause, ...]:
        """Return the root causes of an answer (`root_causes`)."""
        if is_good(diagnosis) or badness(diagnosis) <= TURNED:
            return ()
        self._trials = 0
        found: list[RootCause] = []
        tried = []
        for candidate in self._candidates(diagnosis, ())[:MAX_ALONE]:
            if found and candidate.rank > NEAR:
                break
            after = self._ask(question, candidate.changes)
            if after is None:
                continue
            tried.append((candidate, after))
            if _turned(diagnosis, after):
                found.append(_cause((candidate,), after))
                if len(found) >= ENOUGH:
                    break
        if found:
            return tuple(found)
        together = self._several(question, diagnosis, tried)
        return () if together is None else (together,)

    # --- one world -----------------------------------------------------------------------------------------------

    def _ask(self, question: Question, changes: Sequence[Change]) -> Diagnosis | None:
        """Ask again in the world after the changes; None if they cannot be applied or too much was tried."""
        if self._trials >= self._max_trials:
            return None
        world = self._world(changes)
        if world is None:
            return None
        self._trials += 1
        return self._diagnose(world, question)

    def _world(self, changes: Sequence[Change]) -> ClusterState | None:
        key = msgspec.json.encode(changes)
        if key not in self._worlds:
            try:
                self._worlds[key] = apply(self._state, changes)
            except RemedyError:
                self._worlds[key] = None
        return self._worlds[key]

    def _network(self, changes: Sequence[Change]) -> Network:
        key = msgspec.json.encode(changes)
        if key not in self._networks:
            world = self._world(changes)
            assert world is not None, "it was asked before"
            self._networks[key] = Network(world)
        return self._networks[key]

    # --- candidates ----------------------------------------------------------------------------------------------

    def _candidates(self, diagnosis: Diagnosis, applied: Sequence[Change]) -> list[Candidate]:
        """Return what may be tried for an answer in the world after `applied`, best first, each remedy once."""
        scent = _Scent(diagnosis)
        walked = suspicions_from_walks(self._network(applied), diagnosis)
        found: list[Candidate] = []
        for suspicion in (*self._suspicions, *walked):
            candidate = Candidate(suspicion=suspicion, rank=scent.rank(suspicion))
            if not candidate.changes:
                continue
            same = next((at for at, known in enumerate(found) if _covers(known, candidate)), None)
            if same is None:
                found.append(candidate)
            else:
                found[same] = replace(found[same], rank=min(found[same].rank, candidate.rank))
        return sorted(found, key=_order)

    # --- several blockers ----------------------------------------------------------------------------------------

    def _several(
        self, question: Question, diagnosis: Diagnosis, tried: list[tuple[Candidate, Diagnosis]]
    ) -> RootCause | None:
        """Remove blockers one after another; None if the way cannot be cleared."""
        chosen: list[Candidate] = []
        now = diagnosis
        for _ in range(MAX_BLOCKERS):
            step = _best_step(now, tried)
            if step is None:
                return self._as_far(diagnosis, chosen, now)
            chosen.append(step[0])
            now = step[1]
            if _turned(diagnosis, now):
                return self._smallest(question, diagnosis, chosen, now)
            changes = _all_changes(chosen)
            tried = []
            for candidate in self._candidates(now, changes)[:MAX_ALONE]:
                if candidate.changes in [known.changes for known in chosen]:
                    continue
                after = self._ask(question, _all_changes([*chosen, candidate]))
                if after is not None:
                    tried.append((candidate, after))
                    if _turned(diagnosis, after):
                        break
        return self._as_far(diagnosis, chosen, now)

    def _as_far(self, diagnosis: Diagnosis, chosen: list[Candidate], now: Diagnosis) -> RootCause | None:
        """Return the cause if the drop is gone and what is left is an answer given on purpose (a Service without endpoints)."""
        worst = max(now.client_sees, key=lambda view: now.client_sees[view], default=View.UNKNOWN)
        if chosen and worst in (View.REFUSED, View.UNREACHABLE) and not _ends(now) & _ends(diagnosis):
            return _cause(chosen, now)
        return None

    def _smallest(
        self, question: Question, diagnosis: Diagnosis, chosen: list[Candidate], after: Diagnosis
    ) -> RootCause:
        """Return the cause without the candidates that are not needed."""
        for candidate in tuple(chosen):
            rest = [known for known in chosen if known is not candidate]
            without = self._ask(question, _all_changes(rest)) if rest else None
            if without is not None and _turned(diagnosis, without):
                chosen, after = rest, without
        return _cause(chosen, after)


def _all_changes(candidates: Iterable[Candidate]) -> tuple[Change, ...]:
    return in_order([candidate.changes for candidate in candidates])


def _covers(known: Candidate, candidate: Candidate) -> bool:
    """Say whether a candidate changes nothing that another one about the same namespace does not change as well."""
    if known.suspicion.subject != candidate.suspicion.subject:
        return known.changes == candidate.changes
    return all(change in known.changes for change in candidate.changes)


def _order(candidate: Candidate) -> tuple[bool, int, int]:
    """Sort key: a listener that is put where none was comes last, since it makes almost any connection work."""
    return _plants(candidate), candidate.rank, SEVERITY[candidate.suspicion.level]


def _plants(candidate: Candidate) -> bool:
    return any(isinstance(change, AddSocket) for change in candidate.changes)


def _turned(before: Diagnosis, after: Diagnosis) -> bool:
    """Say whether an answer is good now, as far as it is known, and no less is known than before."""
    unknown = after.client_sees.get(View.UNKNOWN, 0.0) - before.client_sees.get(View.UNKNOWN, 0.0)
    return badness(after) <= TURNED and unknown <= TURNED


def _best_step(now: Diagnosis, tried: list[tuple[Candidate, Diagnosis]]) -> tuple[Candidate, Diagnosis] | None:
    """Return the trial that helps most: less chance of a bad view, else one after which the walk gets past its end."""
    if not tried:
        return None
    best = min(tried, key=lambda item: badness(item[1]))
    if badness(best[1]) < badness(now) - TURNED:
        return best
    here = _ends(now)
    return next((item for item in tried if item[0].rank <= 2 and not _ends(item[1]) & here), None)


def _ends(diagnosis: Diagnosis) -> set[str]:
    return {f"{ended.walk.reason} {ended.place}" for ended in failing_walks(diagnosis)}


def _cause(candidates: Sequence[Candidate], after: Diagnosis) -> RootCause:
    ordered = sorted(candidates, key=_plants)
    suspicions = tuple(replace(candidate.suspicion, confirmed=True) for candidate in ordered)
    return RootCause(suspicions=suspicions, turns_to=dict(after.client_sees))


class _Scent:
    """What the failing walks of an answer touched: how near a suspicion is to them."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        walks = list(failing_walks(diagnosis))
        self._ends = {str(ended.place) for ended in walks}
        places = [step.place for ended in walks for step in ended.walk.steps]
        for outcome in diagnosis.outcomes:
            if outcome.client_sees != View.CONNECTED or outcome.stalls:
                legs = (outcome.forward, *(leg for leg in (outcome.reply, outcome.data) if leg is not None))
                places += [step.place for leg in legs for step in leg.steps]
        self._objects = {key for place in places for key in _keys(place)}
        self._visited = {place.netns for place in places} | {ended.place.netns for ended in walks}

    def rank(self, suspicion: Suspicion) -> int:
        """Return 0 at an end, 1 at an object that was touched, 2 in a namespace that was visited, 3 changing one, 4 else."""
        place = suspicion.place
        if place is not None and str(place) in self._ends:
            return 0
        if place is not None and not self._objects.isdisjoint(_keys(place)):
            return 1
        if suspicion.subject in self._visited:
            return 2
        changes = suspicion.remedy.changes if suspicion.remedy is not None else ()
        return 3 if any(change.netns in self._visited for change in changes) else 4


def _keys(place: Place) -> Iterable[tuple[NetnsId, str, str]]:
    """Yield what identifies the object at a place: a chain, a device, a key of its stage."""
    if place.stage == Stage.NETFILTER:
        yield place.netns, f"{place.table}/{place.chain}", ""
        return
    if place.dev:
        yield place.netns, "dev", place.dev
    if place.key and place.stage in (Stage.ROUTE, Stage.NEIGHBOUR, Stage.TUNNEL, Stage.SYSCTL, Stage.SOCKET):
        yield place.netns, place.stage, place.key


# --- a whole answer --------------------------------------------------------------------------------------------------


def explained(network: Network, diagnosis: Diagnosis, diagnose: Diagnose) -> Diagnosis:
    """Return the diagnosis with its root causes and suspicions filled in.

    `suspicions` are those that concern this traffic, root causes first; `cluster_suspicions` all others.
    """
    return Explainer(network, diagnose).explain(diagnosis)


class Explainer:
    """Explains many answers about one network; what looks wrong in it is found once."""

    def __init__(self, network: Network, diagnose: Diagnose) -> None:
        self._network = network
        self._diagnose = diagnose
        self._last: tuple[tuple[Suspicion, ...], CauseFinder] | None = None

    def explain(self, diagnosis: Diagnosis) -> Diagnosis:
        """Return the diagnosis with root causes and suspicions (`explained`)."""
        standing = self._network.concerning(diagnosis.question)
        finder = self._finder(standing)
        causes = finder.find(diagnosis.question, diagnosis)
        proven = [suspicion for cause in causes for suspicion in cause.suspicions]
        ends = () if is_good(diagnosis) else suspicions_from_walks(self._network, diagnosis)
        near, far = _parted(diagnosis, self._network, standing)
        return replace(
            diagnosis,
            root_causes=causes,
            suspicions=_once((*proven, *ends, *near)),
            cluster_suspicions=tuple(far),
        )

    def _finder(self, standing: tuple[Suspicion, ...]) -> CauseFinder:
        """Return the finder for these suspicions: the last one, if they are the same."""
        if self._last is None or self._last[0] is not standing:
            self._last = (standing, CauseFinder(self._diagnose, self._network.state, standing))
        return self._last[1]


def _parted(
    diagnosis: Diagnosis, network: Network, standing: Iterable[Suspicion]
) -> tuple[list[Suspicion], list[Suspicion]]:
    """Part what looks wrong into what concerns this traffic and the rest."""
    subjects: set[str] = {node.id for node in diagnosis.path.nodes}
    subjects |= {str(node.netns) for node in diagnosis.path.nodes if node.netns}
    for end in (diagnosis.question.src, diagnosis.question.dst):
        subjects |= {end.name, str(end.netns)}
    services = network.ipcache.services_by_ip.get(diagnosis.question.dst.ip, ())
    subjects |= {f"svc/{service.key}" for service in services}
    near: list[Suspicion] = []
    far: list[Suspicion] = []
    for suspicion in standing:
        (near if suspicion.subject in subjects else far).append(suspicion)
    return near, far


def _once(suspicions: Iterable[Suspicion]) -> tuple[Suspicion, ...]:
    """Return suspicions without those whose remedy or place and code came before."""
    seen: set[bytes] = set()
    kept = []
    for suspicion in suspicions:
        changes = suspicion.remedy.changes if suspicion.remedy is not None else ()
        key = msgspec.json.encode(changes or (suspicion.code, str(suspicion.place), suspicion.message))
        if key not in seen:
            seen.add(key)
            kept.append(suspicion)
    return tuple(kept)
