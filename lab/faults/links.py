"""Faults of links, bridge and addresses: what a CNI plugin should have left behind and did not."""

from dataclasses import replace

from lab.faults.fault import Fault, Objects, Run, Witness
from lab.plan import ClusterPlan
from tasks.skoop.model.trace import Reason, Stage, View


def _readdress(plan: ClusterPlan, names: dict[str, str]) -> ClusterPlan:
    """The pod's object carries an address of the peer node's range."""
    pods = tuple(
        replace(pod, ips=tuple(names["peer_stray_ip"] if ip == names["pod_ip"] else ip for ip in pod.ips))
        if pod.key == names["pod"]
        else pod
        for pod in plan.pods
    )
    return replace(plan, pods=pods)


FAULTS = (
    Fault(
        id="F16",
        name="pod-eth0-down",
        title="A pod's own interface is down",
        cause="eth0 in the pod is down",
        at="pod/{pod}",
        target="pod",
        on="shop/web-2",
        steps=(Run(where="pod/{pod}", do="ip link set eth0 down", undo="ip link set eth0 up"),),
        witness=Witness(
            src="{peer_client}",
            dst="{pod_ip}",
            dport=8080,
            views=(View.UNREACHABLE,),
            netns="node/{node}",
            stage=Stage.NEIGHBOUR,
            reason=Reason.NEIGH_FAILED,
        ),
    ),
    Fault(
        id="F17",
        name="pod-lo-down",
        title="A pod cannot reach itself",
        cause="lo in the pod is down",
        at="pod/{pod}",
        target="pod",
        on="shop/web-2",
        steps=(Run(where="pod/{pod}", do="ip link set lo down", undo="ip link set lo up"),),
        witness=Witness(src="{pod}", dst="{pod_ip}", dport=8080, netns="pod/{pod}"),
    ),
    Fault(
        id="F18",
        name="veth-not-on-bridge",
        title="A pod is cut off from its node",
        cause="the pod's veth on the node is not a port of the bridge",
        at="node/{node}",
        target="pod",
        on="shop/web-2",
        steps=(
            Run(
                where="node/{node}",
                do="ip link set {veth} nomaster",
                undo=("ip link set {veth} master {bridge}", "bridge link set dev {veth} hairpin on"),
            ),
        ),
        witness=Witness(
            src="{peer_client}",
            dst="{pod_ip}",
            dport=8080,
            views=(View.UNREACHABLE,),
            netns="node/{node}",
            stage=Stage.NEIGHBOUR,
            reason=Reason.NEIGH_FAILED,
        ),
    ),
    Fault(
        id="F19",
        name="hairpin-off",
        title="A pod cannot reach itself through its Service",
        cause="hairpin mode is off on the pod's bridge port",
        at="node/{node}",
        target="pod",
        on="shop/db-1",
        steps=(
            Run(
                where="node/{node}",
                do="bridge link set dev {veth} hairpin off",
                undo="bridge link set dev {veth} hairpin on",
            ),
        ),
        witness=Witness(
            src="{pod}", dst="svc/shop/db:sql", netns="node/{node}", stage=Stage.BRIDGE, reason=Reason.BRIDGE_FORWARD
        ),
    ),
    Fault(
        id="F20",
        name="bridge-address-old",
        title="The bridge kept the subnet of an earlier life; pods have no gateway",
        cause="the bridge's address is not in the node's pod CIDR",
        at="node/{node}",
        steps=(
            Run(
                where="node/{node}",
                do="ip addr add 10.244.77.1/24 dev {bridge}",
                undo="ip addr del 10.244.77.1/24 dev {bridge}",
            ),
            Run(
                where="node/{node}",
                do="ip addr del {gateway}/24 dev {bridge}",
                undo="ip addr add {gateway}/24 brd + dev {bridge}",
            ),
        ),
        witness=Witness(
            src="{client}",
            dst="{peer_web_ip}",
            dport=8080,
            views=(View.UNREACHABLE,),
            netns="pod/{client}",
            stage=Stage.NEIGHBOUR,
            reason=Reason.NEIGH_FAILED,
        ),
    ),
    Fault(
        id="F22",
        name="pod-outside-cidr",
        title="A pod got an address of another node's range; nobody finds it",
        cause="the pod's address is outside its node's pod CIDR",
        at="pod/{pod}",
        target="pod",
        on="shop/web-2",
        steps=(
            Run(
                where="pod/{pod}",
                do="ip addr add {peer_stray_ip}/24 dev eth0",
                undo="ip addr del {peer_stray_ip}/24 dev eth0",
            ),
            Run(
                where="pod/{pod}",
                do="ip addr del {pod_ip}/24 dev eth0",
                undo="ip addr add {pod_ip}/24 brd + dev eth0",
            ),
            Objects(change=_readdress),
        ),
        witness=Witness(
            src="{peer_client}",
            dst="{peer_stray_ip}",
            dport=8080,
            views=(View.UNREACHABLE,),
            netns="pod/{peer_client}",
            stage=Stage.NEIGHBOUR,
            reason=Reason.NEIGH_FAILED,
        ),
    ),
    Fault(
        id="F23",
        name="duplicate-pod-ip",
        title="Two pods of a node have the same address; the wrong one answers",
        cause="the address is in two network namespaces",
        at="pod/{sibling}",
        target="pod",
        on="shop/web-2",
        steps=(
            Run(
                where="pod/{sibling}",
                do="ip addr add {pod_ip}/32 dev eth0",
                undo="ip addr del {pod_ip}/32 dev eth0",
            ),
            Run(
                where="node/{node}",
                do="ip neigh replace {pod_ip} lladdr {sibling_mac} dev {bridge} nud permanent",
                undo="ip neigh del {pod_ip} dev {bridge}",
            ),
        ),
        witness=Witness(
            src="{peer_client}",
            dst="{pod_ip}",
            dport=8080,
            views=(View.CONNECTED,),
            answer="ok",
            server="pod/{sibling}",
        ),
    ),
    Fault(
        id="F25",
        name="pod-route-gone",
        title="A node has no route to its own pods",
        cause="the connected route of the pod CIDR is missing on the node",
        at="node/{node}",
        steps=(
            Run(
                where="node/{node}",
                do="ip route del {cidr} dev {bridge}",
                undo="ip route add {cidr} dev {bridge} proto kernel scope link src {gateway}",
            ),
        ),
        witness=Witness(src="{peer_client}", dst="{web_ip}", dport=8080),
    ),
    Fault(
        id="F29",
        name="bridge-port-blocked",
        title="A pod's bridge port does not forward",
        cause="the bridge port's state is not forwarding",
        at="node/{node}",
        target="pod",
        on="shop/web-2",
        steps=(
            Run(
                where="node/{node}",
                do="bridge link set dev {veth} state 0",
                undo="bridge link set dev {veth} state 3",
            ),
        ),
        witness=Witness(
            src="{pod}",
            dst="{peer_web_ip}",
            dport=8080,
            views=(View.UNREACHABLE,),
            netns="pod/{pod}",
            stage=Stage.NEIGHBOUR,
            reason=Reason.NEIGH_FAILED,
        ),
    ),
    Fault(
        id="F33",
        name="pod-no-default-route",
        title="A pod reaches other pods, but neither Services nor the world",
        cause="the pod has no default route",
        at="pod/{pod}",
        target="pod",
        on="shop/client-2",
        steps=(Run(where="pod/{pod}", do="ip route del default"),),
        witness=Witness(
            src="{pod}",
            dst="svc/shop/web:http",
            views=(View.UNREACHABLE,),
            netns="pod/{pod}",
            stage=Stage.ROUTE,
            reason=Reason.IP_INNOROUTES,
        ),
    ),
)
