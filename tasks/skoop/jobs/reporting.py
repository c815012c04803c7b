"""Steps in which diagnoses and suspicions come together: what explains each answer, and what is left for the cluster."""

from collections import defaultdict
from collections.abc import Iterable

from msgspec.structs import replace

from tasks.skoop.context import Context
from tasks.skoop.jobs.answers import Answered, Answers, Crossed, Suspicions
from tasks.skoop.model.diagnosis import Diagnosis
from tasks.skoop.model.suspicion import Suspicion
from tasks.skoop.specs import Diagnosed, ExplainParams, Reported, ReportParams


def explain(params: ExplainParams, context: Context) -> Diagnosed:
    """Find the root causes of a shard's answers, and put to each what looks wrong on its way."""
    from tasks.skoop.jobs.thinking import thinking_of

    answers = context.get(params.diagnoses, Answers)
    found, crossed = _found(params.simulated, params.infra, context)
    placed = _Placed(found, crossed)
    explained: list[Answered] = []
    with thinking_of(params.state, context) as thinking:
        explainer = thinking.explainer((params.simulated, params.infra), found)
        for number, one in enumerate(answers.items):
            context.step.progress(100 * number // len(answers.items))
            explained.append(replace(one, diagnosis=placed.put_to(explainer.explain(one.diagnosis))))
    return Diagnosed(diagnoses=context.put(Answers(items=tuple(explained))), count=len(explained))


def report(params: ReportParams, context: Context) -> Reported:
    """Put the answer together: the explained diagnoses, and for the cluster what looks wrong and concerns none of them."""
    concerned = {
        _identity(suspicion)
        for digest in params.diagnoses
        for one in context.get(digest, Answers).items
        for suspicion in one.diagnosis.suspicions
    }
    found, _ = _found(params.simulated, params.infra, context)
    rest = Suspicions(items=tuple(one for one in found if _identity(one) not in concerned))
    return Reported(state=params.state, diagnoses=params.diagnoses, cluster=context.put(rest))


def _found(simulated: Iterable[str], infra: str, context: Context) -> tuple[tuple[Suspicion, ...], tuple[Crossed, ...]]:
    """Return all that looks wrong in places, worst first, and on links."""
    from tasks.skoop.network import in_order

    between = context.get(infra, Suspicions)
    at_nodes = (one for digest in simulated for one in context.get(digest, Suspicions).items)
    return in_order((*at_nodes, *between.items)), between.crossed


def _identity(suspicion: Suspicion) -> tuple[str, str, str]:
    return suspicion.code, suspicion.subject, suspicion.message


class _Placed:
    """Suspicions by what they are about: a namespace, or a link between places."""

    def __init__(self, suspicions: Iterable[Suspicion], crossed: Iterable[Crossed]) -> None:
        self._about: dict[str, list[Suspicion]] = defaultdict(list)
        for suspicion in suspicions:
            self._about[suspicion.subject].append(suspicion)
        self._on_link = {one.link: one.suspicions for one in crossed}

    def put_to(self, diagnosis: Diagnosis) -> Diagnosis:
        """Return the diagnosis with what looks wrong at the nodes and on the links of its path.

        What concerns other traffic is left to the whole answer, where it is told once.
        """
        path = diagnosis.path
        nodes = tuple(
            replace(node, suspicions=tuple(self._about[subject]))
            if (subject := node.netns or node.id) in self._about
            else node
            for node in path.nodes
        )
        links = dict.fromkeys(
            link for crossing in path.links for link in [Crossed.key(crossing)] if link in self._on_link
        )
        told = {_identity(one) for one in diagnosis.suspicions}
        more = {_identity(one): one for link in links for one in self._on_link[link] if _identity(one) not in told}
        return replace(
            diagnosis,
            path=replace(path, nodes=nodes),
            suspicions=(*diagnosis.suspicions, *more.values()),
            cluster_suspicions=(),
        )
