"""Faults of netfilter rules and connection tracking that are nobody's intent."""

from lab.faults.fault import FLANNEL, Fault, Iptables, Objects, Programmed, Run, Talk, Witness
from lab.faults.services import not_ready
from lab.plan import Backend
from tasks.skoop.model.trace import Reason, Stage, View

FAULTS = (
    Fault(
        id="F58",
        name="both-backends",
        title="Old Service rules in the other iptables back end send traffic to a pod that is gone",
        cause="stale DNAT rules in the back end that kube-proxy does not use",
        at="node/{node}",
        backends=(Backend.LEGACY,),
        steps=(
            Iptables(
                where="node/{node}",
                other=True,
                families=(4,),
                args=(
                    "-t nat -A PREROUTING -d 10.96.10.1/32 -p tcp --dport 80 -j DNAT --to-destination {dead_ip}:8080",
                    "-t nat -A OUTPUT -d 10.96.10.1/32 -p tcp --dport 80 -j DNAT --to-destination {dead_ip}:8080",
                ),
            ),
        ),
        witness=Witness(
            src="{client}",
            dst="svc/shop/web:http",
            views=(View.UNREACHABLE,),
            netns="node/{node}",
            stage=Stage.NEIGHBOUR,
            reason=Reason.NEIGH_FAILED,
        ),
    ),
    Fault(
        id="F59",
        name="drop-lost-its-match",
        title="A version skew of iptables turned a rule for marked packets into one for all",
        cause="KUBE-FIREWALL drops everything: the rule has lost its mark match",
        at="node/{node}",
        steps=(
            Iptables(
                where="node/{node}",
                args=(
                    "-I KUBE-FIREWALL 1 -m comment --comment 'kubernetes firewall for dropping marked packets' -j DROP",
                ),
            ),
        ),
        witness=Witness(
            src="host/ext",
            dst="{node_ip}",
            dport=10250,
            netns="node/{node}",
            stage=Stage.NETFILTER,
            reason=Reason.NETFILTER_DROP,
            chain="KUBE-FIREWALL",
        ),
    ),
    Fault(
        id="F62",
        name="service-rules-absent",
        title="kube-proxy could not write its rules; Service addresses mean nothing on the node",
        cause="the nat chain KUBE-SERVICES is empty on the node",
        at="node/{node}",
        steps=(Iptables(where="node/{node}", args=("-t nat -F KUBE-SERVICES",)),),
        witness=Witness(src="{client}", dst="svc/shop/web:http"),
    ),
    Fault(
        id="F64",
        name="no-masquerade",
        title="Pods of a node do not reach the world",
        cause="no rule masquerades the pods' addresses on the node",
        at="node/{node}",
        kinds=FLANNEL,
        steps=(Iptables(where="node/{node}", args=("-t nat -F FLANNEL-POSTRTG",)),),
        witness=Witness(src="{client}", dst="host/ext", dport=8080),
    ),
    Fault(
        id="F66",
        name="masquerade-all",
        title="Every Service connection seems to come from the node",
        cause="kube-proxy runs with --masquerade-all",
        at="node/{node}",
        steps=(Programmed(node="{node}", masquerade_all=True),),
        witness=Witness(
            src="{client}",
            dst="svc/shop/gateway:http",
            views=(View.CONNECTED,),
            answer="ok",
            server="pod/shop/gateway-1",
            seen_src="{gateway}",
        ),
    ),
    Fault(
        id="F70",
        name="hostport-lost",
        title="A hostPort is gone after the agent was restarted",
        cause="the CNI-HOSTPORT-DNAT chain is empty",
        at="node/{node}",
        steps=(Iptables(where="node/{node}", args=("-t nat -F CNI-HOSTPORT-DNAT",)),),
        witness=Witness(
            src="host/ext",
            dst="{node_ip}",
            dport=8088,
            views=(View.REFUSED,),
            netns="node/{node}",
            stage=Stage.SOCKET,
            reason=Reason.NO_SOCKET,
        ),
    ),
    Fault(
        id="F73",
        name="stale-udp-entry",
        title="A UDP client keeps talking to a pod that is gone",
        cause="a conntrack entry still points to an endpoint that is no more",
        at="node/{node}",
        steps=(
            Talk(src="{client}", dst="svc/shop/echo:echo", dport=80, protocol="udp", sport=40053),
            Objects(change=not_ready("web")),
            Run(where="app:web", do="ip link set eth0 down", undo="ip link set eth0 up"),
        ),
        witness=Witness(
            src="{client}",
            dst="svc/shop/echo:echo",
            protocol="udp",
            sport=40053,
            views=(View.UNREACHABLE, View.TIMEOUT),
            stage=Stage.NEIGHBOUR,
            reason=Reason.NEIGH_FAILED,
        ),
    ),
    Fault(
        id="F74",
        name="stale-dns-entry",
        title="DNS is dead for one client that always uses the same port",
        cause="a conntrack entry made while the rules were missing keeps the cluster IP untranslated",
        at="node/{node}",
        steps=(
            Iptables(where="node/{node}", args=("-t nat -F KUBE-SERVICES",), families=(4,)),
            Talk(src="{client}", dst="svc/kube-system/kube-dns:dns", dport=53, protocol="udp", sport=40054),
            Programmed(node="{node}"),
        ),
        witness=Witness(src="{client}", dst="svc/kube-system/kube-dns:dns", protocol="udp", sport=40054),
    ),
    Fault(
        id="F81",
        name="sidecar-redirect",
        title="A pod's connections are redirected to a proxy that does not listen",
        cause="nat OUTPUT in the pod redirects to port 15001, where nobody listens",
        at="pod/{pod}",
        target="pod",
        on="shop/client-2",
        steps=(
            Iptables(where="pod/{pod}", args=("-t nat -A OUTPUT -p tcp -j REDIRECT --to-ports 15001",), families=(4,)),
        ),
        witness=Witness(
            src="{pod}",
            dst="{peer_web_ip}",
            dport=8080,
            views=(View.REFUSED,),
            netns="pod/{pod}",
            stage=Stage.SOCKET,
            reason=Reason.NO_SOCKET,
        ),
    ),
)
