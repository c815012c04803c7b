"""What a fault is made of: steps that break and mend themselves, and the connection that shows it.

Texts in steps and witnesses may hold `{names}` that are filled in from where the fault is put (`facts`): the node or pod, a
peer node, addresses, devices. Faults know no process; `lab.faulting` carries the steps out.
"""

from collections.abc import Callable
from dataclasses import dataclass

from lab.build import VTEP_NAME, vtep_address
from lab.errors import BadRequest
from lab.plan import Backend, ClusterPlan, Kind, Listener, NodePlan, PodPlan, by_family
from tasks.skoop.model.trace import Reason, Stage, View

ALL_KINDS = tuple(Kind)
FLANNEL = (Kind.FLANNEL_VXLAN, Kind.FLANNEL_HOST_GW)
VXLAN = (Kind.FLANNEL_VXLAN,)
ROUTED = (Kind.FLANNEL_HOST_GW, Kind.BRIDGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A command in a namespace, and what takes it back (one command, or several in order). `where` is a namespace id, or `app:<app>` for each such pod.

    What a link's going down takes with it (routes, addresses, neighbours) is put back without being named here.
    """

    where: str
    do: str
    undo: str | tuple[str, ...] = ()
    families: tuple[int, ...] = ()
    """Only if the lab has one of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sysctl:
    """A sysctl (path below /proc/sys/net) set to a value; what it was comes back."""

    where: str
    key: str
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Iptables:
    """Arguments for iptables of the lab's back end (`other`: of the other one); the whole rule set comes back as it was."""

    where: str
    args: tuple[str, ...]
    families: tuple[int, ...] = (4, 6)
    other: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseServer:
    """A server stops listening."""

    where: str
    protocol: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenServer:
    """A server starts to listen."""

    where: str
    listener: Listener


@dataclass(frozen=True, slots=True, kw_only=True)
class Choke:
    """A TCP server stops accepting, its queue full."""

    where: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """The cluster's objects change, and every kube-proxy follows."""

    change: Callable[[ClusterPlan, dict[str, str]], ClusterPlan]


@dataclass(frozen=True, slots=True, kw_only=True)
class Programmed:
    """One node's kube-proxy rules are those of other objects than the cluster has (it missed an update, or masquerades all)."""

    node: str
    change: Callable[[ClusterPlan, dict[str, str]], ClusterPlan] | None = None
    masquerade_all: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """Traffic that leaves a trace in connection tracking."""

    src: str
    dst: str
    dport: int
    protocol: str
    sport: int


Step = Run | Sysctl | Iptables | CloseServer | OpenServer | Choke | Objects | Programmed | Talk


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """A connection that the fault changes, and how. Without the fault it is answered.

    `views` are what the client may then see (several where the kernel chooses). `netns`, `stage`, `reason`, `chain` say where
    the kernel stops it, as far as a trace can tell ("" / None: not told). `server` and `seen_src`: who answers instead, and
    which source it then sees.
    """

    src: str
    dst: str
    dport: int = 0
    protocol: str = "tcp"
    sport: int = 0
    payload: int = 0
    family: int = 4
    views: tuple[View, ...] = (View.TIMEOUT,)
    answer: str = ""
    netns: str = ""
    stage: Stage | None = None
    reason: Reason | None = None
    chain: str = ""
    server: str = ""
    seen_src: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault. `id` as in the list of faults; `target` is what it is put on: node or pod; `on` the default.

    `cause` is what a diagnosis should say in its own words, `at` the namespace where the cause lies (which need not be where
    the packet ends).
    """

    id: str
    name: str
    title: str
    cause: str
    at: str
    steps: tuple[Step, ...]
    witness: Witness
    target: str = "node"
    on: str = "n2"
    kinds: tuple[Kind, ...] = ALL_KINDS
    backends: tuple[Backend, ...] = tuple(Backend)
    needs_families: tuple[int, ...] = (4,)

    def fits(self, plan: ClusterPlan) -> str:
        """Return "" if it can be put into a lab, else why not."""
        if plan.kind not in self.kinds:
            return f"{self.id} needs a lab of kind {' or '.join(self.kinds)}"
        if plan.backend not in self.backends:
            return f"{self.id} needs the back end {' or '.join(self.backends)}"
        if not set(self.needs_families) <= set(plan.families):
            return f"{self.id} needs IPv{' and IPv'.join(map(str, self.needs_families))}"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """A fault that is in a lab now: which, on what, and what was done."""

    fault: str
    on: str
    did: tuple[str, ...]


def facts(plan: ClusterPlan, fault: Fault, on: str | None) -> dict[str, str]:
    """Return the names for a fault's texts. Raises BadRequest if `on` is not a node or pod of the lab."""
    given = (on or fault.on).removeprefix("node/").removeprefix("pod/")
    nodes = {node.name: node for node in plan.nodes}
    if fault.target == "node":
        if given not in nodes:
            raise BadRequest("node", given, tuple(nodes))
        return {"on": given} | _node_facts(plan, nodes[given])
    pods = {pod.key: pod for pod in plan.pods}
    if given not in pods:
        raise BadRequest("pod", given, tuple(pods))
    pod = pods[given]
    return {"on": given} | _node_facts(plan, nodes[pod.node]) | _pod_facts(plan, pod)


def _node_facts(plan: ClusterPlan, node: NodePlan) -> dict[str, str]:
    others = [other for other in plan.nodes if other is not node]
    peer, third = others[0], others[-1]
    found = {"bridge": plan.bridge, "vtep_dev": VTEP_NAME[4], "vtep_dev6": VTEP_NAME[6]}
    for prefix, which in (("", node), ("peer_", peer), ("third_", third)):
        found[f"{prefix}node" if not prefix else prefix[:-1]] = which.name
        for family, end in ((4, ""), (6, "6")):
            if family in plan.families:
                found[f"{prefix}node_ip{end}"] = by_family(which.ips, family)
                found[f"{prefix}cidr{end}"] = by_family(which.pod_cidrs, family)
                found[f"{prefix}gateway{end}"] = by_family(which.gateways, family)
                found[f"{prefix}vtep{end}"] = vtep_address(which, family)
                found[f"{prefix}vtep_mac{end}"] = which.vtep_macs[family]
        found[f"{prefix}dead_ip"] = f"10.244.{which.number}.99"
        found[f"{prefix}stray_ip"] = f"10.244.{which.number}.200"
        for app in ("client", "web"):
            pod = next(pod for pod in plan.pods_on(which.name) if pod.app == app)
            found |= {f"{prefix}{app}": pod.key, f"{prefix}{app}_ip": by_family(pod.ips, 4)}
            found[f"{prefix}{app}_ip6"] = by_family(pod.ips, 6)
    db = next(pod for pod in plan.pods if pod.app == "db")
    return found | {"db_node": db.node, "db_dead_ip": f"10.244.{plan.node(db.node).number}.99"}


def _pod_facts(plan: ClusterPlan, pod: PodPlan) -> dict[str, str]:
    sibling = next(other for other in plan.pods_on(pod.node) if other is not pod and other.app != "client")
    return {
        "pod": pod.key,
        "pod_ip": by_family(pod.ips, 4),
        "pod_ip6": by_family(pod.ips, 6),
        "veth": pod.veth,
        "sibling": sibling.key,
        "sibling_mac": sibling.mac,
    }
