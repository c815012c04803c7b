"""Steps that think about a snapshot: what is wrong on each node, what becomes of the traffic, what is wrong in between."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from tasks.skoop.context import Context
from tasks.skoop.jobs.answers import Answered, Answers, Crossed, Suspicions, load_pairs
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.endpoint import EndpointType
from tasks.skoop.model.ids import NetnsId, NodeName, PodKey, node_netns
from tasks.skoop.model.netnode import Link, LinkType
from tasks.skoop.model.suspicion import Suspicion
from tasks.skoop.specs import Diagnosed, DiagnoseParams, InfraParams, Pair, SimulateParams, Suspected

if TYPE_CHECKING:
    from tasks.skoop.network import Network

BETWEEN = frozenset((LinkType.INFRA, LinkType.EXTERNAL))
"""Links that no collected namespace holds: what carries them is the infrastructure."""


def simulate_plugin(params: SimulateParams, context: Context) -> Suspected:
    """Find what looks wrong on one node and in its pods: to the kernel, to its plugin, to its service proxy."""
    from tasks.skoop.assertions.netstack import NetstackAssertion
    from tasks.skoop.jobs.thinking import thinking_of

    node = NodeName(params.node)
    pairs = load_pairs(params.pairs, context)
    with thinking_of(params.state, context) as thinking:
        network = thinking.network
        netstack = NetstackAssertion(network.cluster)
        checks: list[tuple[str, Callable[[], Iterable[Suspicion]]]] = [
            (node, lambda: network.plugin.create_node(node).suspicions),
            *((pod.key, partial(_pod_suspicions, network, pod.key)) for pod in network.cluster.pods_on(node)),
            *((netns, partial(netstack.check, netns)) for netns in namespaces_on(node, network.state)),
            ("services", lambda: network.services.validate(node, services=_services(network, pairs))),
        ]
        found: list[Suspicion] = []
        for number, (what, check) in enumerate(checks):
            context.step.progress(100 * number // len(checks), what)
            found += check()
    return _suspected(found, context)


def diagnose(params: DiagnoseParams, context: Context) -> Diagnosed:
    """Answer a shard of questions on one state."""
    from tasks.skoop.jobs.questions import questions_of
    from tasks.skoop.jobs.thinking import thinking_of

    shard = params.shard
    pairs = load_pairs(shard.pairs, context)
    answered: list[Answered] = []
    with thinking_of(params.state, context) as thinking:
        for number in range(shard.count):
            context.step.progress(100 * number // shard.count)
            position = shard.start + number
            answered += (
                Answered(pair=position, diagnosis=thinking.diagnostor.diagnose(question))
                for question in questions_of(thinking.network.ipcache, pairs, position)
            )
    return Diagnosed(diagnoses=context.put(Answers(items=tuple(answered))), count=len(answered))


def assert_infra(params: InfraParams, context: Context) -> Suspected:
    """Find what looks wrong where packets crossed between places, in the objects, and in what belongs to no node."""
    from tasks.skoop.assertions.kubernetes import KubernetesAssertion
    from tasks.skoop.assertions.netstack import NetstackAssertion
    from tasks.skoop.jobs.thinking import thinking_of

    links = {
        Crossed.key(link): link
        for digest in params.diagnoses
        for one in context.get(digest, Answers).items
        for link in one.diagnosis.path.links
        if link.type in BETWEEN
    }
    with thinking_of(params.state, context) as thinking:
        network, state = thinking.network, thinking.network.state
        crossed = [Crossed(link=key, suspicions=_between(network, link)) for key, link in links.items()]
        found = [*network.plugin.suspicions(), *KubernetesAssertion(network.cluster).check()]
        at_home = {netns for node in state.objects.nodes for netns in namespaces_on(node.name, state)}
        netstack = NetstackAssertion(network.cluster)
        for netns in (*state.netns, *state.uncollected):
            if netns not in at_home and not netns.startswith("host/"):
                found += netstack.check(netns)
    return _suspected(found, context, crossed)


def namespaces_on(node: NodeName, state: ClusterState) -> tuple[NetnsId, ...]:
    """Return the namespaces that are looked at with a node: its own and those of its running pods, collected or not."""
    pods = (pod.netns for pod in state.objects.pods if pod.node_name == node)
    wanted = (netns for netns in pods if netns in state.netns or netns in state.uncollected)
    return tuple(dict.fromkeys((node_netns(node), *wanted)))


def _pod_suspicions(network: "Network", pod: PodKey) -> tuple[Suspicion, ...]:
    return network.plugin.create_pod(pod).suspicions


def _services(network: "Network", pairs: tuple[Pair, ...]) -> frozenset[str] | None:
    """Return the Services that are to be compared with the rules of nodes: where there are many, those asked about."""
    from tasks.skoop.jobs.questions import questions_of, services_asked
    from tasks.skoop.network import MANY_SERVICES

    if len(network.state.objects.services) <= MANY_SERVICES:
        return None
    ipcache = network.ipcache
    questions = (question for position in range(len(pairs)) for question in questions_of(ipcache, pairs, position))
    return frozenset(key for question in questions for key in services_asked(ipcache, question))


def _between(network: "Network", link: Link) -> tuple[Suspicion, ...]:
    """Return what may stop a packet on a link that leaves or enters a node."""
    infra, packet = network.infra, link.packet
    source, target = (NodeName(end.removeprefix("node/")) for end in (link.source, link.destination))
    match link.source.startswith("node/"), link.destination.startswith("node/"):
        case True, True:
            return infra.node_to_node(source, target, packet)
        case True, False:
            return infra.node_to_external(source, packet)
        case False, True:
            owner = network.ipcache.lookup(packet.dst)
            if owner is not None and owner.type is EndpointType.LOADBALANCER:
                return infra.external_to_load_balancer(packet)
            return infra.external_to_node(target, packet)
        case _:
            return ()


def _suspected(found: Iterable[Suspicion], context: Context, crossed: Iterable[Crossed] = ()) -> Suspected:
    from tasks.skoop.network import in_order

    told = tuple(one for one in crossed if one.suspicions)
    suspicions = Suspicions(items=in_order(found), crossed=told)
    count = len(suspicions.items) + sum(len(one.suspicions) for one in told)
    return Suspected(suspicions=context.put(suspicions), count=count)
