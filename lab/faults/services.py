"""Faults of Services and endpoints: objects that are wrong, rules that are late, servers that do not serve."""

from collections.abc import Callable
from dataclasses import replace

from lab.faults.fault import CloseServer, Fault, Objects, OpenServer, Programmed, Witness
from lab.plan import UNDERLAY_NETS, ClusterPlan, Listener, ServicePlan
from tasks.skoop.model.trace import Reason, Stage, View

Change = Callable[[ClusterPlan, dict[str, str]], ClusterPlan]


def not_ready(app: str) -> Change:
    """Return the change that makes every pod of an app unready."""

    def change(plan: ClusterPlan, _names: dict[str, str]) -> ClusterPlan:
        return replace(plan, pods=tuple(replace(pod, ready=False) if pod.app == app else pod for pod in plan.pods))

    return change


def _this_not_ready(plan: ClusterPlan, names: dict[str, str]) -> ClusterPlan:
    key = names.get("pod", names["web"])
    return replace(plan, pods=tuple(replace(pod, ready=False) if pod.key == key else pod for pod in plan.pods))


def _service(key: str, edit: Callable[[ServicePlan], ServicePlan]) -> Change:
    def change(plan: ClusterPlan, _names: dict[str, str]) -> ClusterPlan:
        return replace(plan, services=tuple(edit(one) if one.key == key else one for one in plan.services))

    return change


def _wrong_target(service: ServicePlan) -> ServicePlan:
    return replace(service, ports=tuple(replace(port, target="8081") for port in service.ports))


def _db_was_elsewhere(plan: ClusterPlan, names: dict[str, str]) -> ClusterPlan:
    """The objects of before the db pod was replaced: its old address is dead."""
    dead = names["db_dead_ip"]
    pods = tuple(replace(pod, ips=(dead, *pod.ips[1:])) if pod.app == "db" else pod for pod in plan.pods)
    return replace(plan, pods=pods)


def _underlay_only(service: ServicePlan) -> ServicePlan:
    return replace(service, source_ranges=tuple(UNDERLAY_NETS.values()))


FAULTS = (
    Fault(
        id="F63",
        name="stale-endpoints",
        title="One node's kube-proxy missed an update and sends to an endpoint that is gone",
        cause="the node's KUBE-SEP rules are not those of the EndpointSlice",
        at="node/{node}",
        on="n1",
        steps=(Programmed(node="{node}", change=_db_was_elsewhere),),
        witness=Witness(
            src="{client}",
            dst="svc/shop/db:sql",
            views=(View.UNREACHABLE,),
            netns="node/{db_node}",
            stage=Stage.NEIGHBOUR,
            reason=Reason.NEIGH_FAILED,
        ),
    ),
    Fault(
        id="F76",
        name="lb-source-ranges",
        title="Pods are shut out of a load balancer's address",
        cause="loadBalancerSourceRanges does not hold the pods' network",
        at="svc/shop/web-lb",
        steps=(Objects(change=_service("shop/web-lb", _underlay_only)),),
        witness=Witness(
            src="{client}",
            dst="172.18.0.210",
            dport=80,
            netns="node/{node}",
            stage=Stage.NETFILTER,
            reason=Reason.NETFILTER_DROP,
            chain="KUBE-PROXY-FIREWALL",
        ),
    ),
    Fault(
        id="F83",
        name="selector-mismatch",
        title="A Service refuses at once: it has no endpoints",
        cause="the Service's selector matches no pod",
        at="svc/shop/web",
        steps=(Objects(change=_service("shop/web", lambda one: replace(one, selector=(("app", "wbe"),)))),),
        witness=Witness(
            src="{client}",
            dst="svc/shop/web:http",
            views=(View.REFUSED,),
            netns="node/{node}",
            stage=Stage.NETFILTER,
            reason=Reason.NETFILTER_REJECT,
            chain="KUBE-SERVICES",
        ),
    ),
    Fault(
        id="F84",
        name="target-port-wrong",
        title="A Service leads to a port where the pod does not listen",
        cause="targetPort is not a port that the pods listen on",
        at="svc/shop/web",
        steps=(Objects(change=_service("shop/web", _wrong_target)),),
        witness=Witness(
            src="{client}",
            dst="svc/shop/web:http",
            views=(View.REFUSED,),
            stage=Stage.SOCKET,
            reason=Reason.NO_SOCKET,
        ),
    ),
    Fault(
        id="F86",
        name="readiness-failing",
        title="A Service's only pod runs but is not ready",
        cause="the pod is not ready, so it is no endpoint",
        at="pod/{pod}",
        target="pod",
        on="shop/db-1",
        steps=(Objects(change=_this_not_ready),),
        witness=Witness(
            src="{client}",
            dst="svc/shop/db:sql",
            views=(View.REFUSED,),
            netns="node/{node}",
            stage=Stage.NETFILTER,
            reason=Reason.NETFILTER_REJECT,
            chain="KUBE-SERVICES",
        ),
    ),
    Fault(
        id="F87",
        name="listens-on-localhost",
        title="An application listens on 127.0.0.1 only",
        cause="the server is bound to 127.0.0.1",
        at="pod/{pod}",
        target="pod",
        on="shop/db-1",
        steps=(
            CloseServer(where="pod/{pod}", protocol="tcp", port=5432),
            OpenServer(where="pod/{pod}", listener=Listener(protocol="tcp", port=5432, address="127.0.0.1")),
        ),
        witness=Witness(
            src="{peer_client}",
            dst="{pod_ip}",
            dport=5432,
            views=(View.REFUSED,),
            netns="pod/{pod}",
            stage=Stage.SOCKET,
            reason=Reason.NO_SOCKET,
        ),
    ),
    Fault(
        id="F88",
        name="no-local-endpoint",
        title="Clients outside time out on a node that has no pod of the Service",
        cause="externalTrafficPolicy is Local and the node has no ready endpoint",
        at="node/{node}",
        steps=(Objects(change=_this_not_ready),),
        witness=Witness(
            src="host/ext",
            dst="{node_ip}",
            dport=30084,
            netns="node/{node}",
            stage=Stage.NETFILTER,
            reason=Reason.NETFILTER_DROP,
            chain="KUBE-EXTERNAL-SERVICES",
        ),
    ),
    Fault(
        id="F89",
        name="health-port-silent",
        title="The load balancer takes a node for dead",
        cause="nothing listens on the healthCheckNodePort",
        at="node/{node}",
        steps=(CloseServer(where="node/{node}", protocol="tcp", port=30090),),
        witness=Witness(
            src="host/ext",
            dst="{node_ip}",
            dport=30090,
            views=(View.REFUSED,),
            netns="node/{node}",
            stage=Stage.SOCKET,
            reason=Reason.NO_SOCKET,
        ),
    ),
)
