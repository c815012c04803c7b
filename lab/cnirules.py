"""Which iptables rules do the network plugins of a lab write, beside kube-proxy's?

Pure. flanneld's masquerade and forward rules follow pkg/trafficmngr/iptables (v0.22 and later), the masquerade rules of the
plain bridge kind are those of ip-masq-agent, hostPorts those of the CNI plugin portmap (v1.1).
"""

import base64
from hashlib import sha512
from ipaddress import ip_interface

from lab.plan import POD_NETS, ClusterPlan, NodePlan, PodPlan, by_family
from lab.ruletext import Tables

_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}


def add_plugin_rules(tables: Tables, plan: ClusterPlan, node: NodePlan, family: int) -> None:
    """Append the rules of the lab's network plugin on a node to kube-proxy's."""
    if plan.kind.is_flannel:
        _flannel(tables, node, family)
    else:
        _ip_masq_agent(tables, family)
    pods = [pod for pod in plan.pods_on(node.name) if pod.host_port]
    if pods:
        _portmap(tables, pods, family)


def _flannel(tables: Tables, node: NodePlan, family: int) -> None:
    says = '-m comment --comment "flanneld'
    whole, own, multicast = POD_NETS[family], by_family(node.pod_cidrs, family), _MULTICAST[family]
    tables.add("nat", "POSTROUTING", f'{says} masq" -j FLANNEL-POSTRTG')
    for match, target in (
        ("", "RETURN"),
        (f"-s {own} -d {whole} ", "RETURN"),
        (f"-s {whole} -d {own} ", "RETURN"),
        (f"! -s {whole} -d {own} ", "RETURN"),
        (f"-s {whole} ! -d {multicast} ", "MASQUERADE --random-fully"),
        (f"! -s {whole} -d {whole} ", "MASQUERADE --random-fully"),
    ):
        mark = "-m mark --mark 0x4000/0x4000 " if not match else ""
        tables.add("nat", "FLANNEL-POSTRTG", f'{mark}{match}{says} masq" -j {target}')
    tables.add("filter", "FORWARD", f'{says} forward" -j FLANNEL-FWD')
    for side in ("-s", "-d"):
        tables.add("filter", "FLANNEL-FWD", f'{side} {whole} {says} forward" -j ACCEPT')


def _ip_masq_agent(tables: Tables, family: int) -> None:
    ensure = "ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom IP-MASQ-AGENT chain"
    jump = f'-m comment --comment "ip-masq-agent: {ensure}" -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT'
    tables.add("nat", "POSTROUTING", jump)
    local = '-m comment --comment "ip-masq-agent: local traffic is not subject to MASQUERADE" -j RETURN'
    tables.add("nat", "IP-MASQ-AGENT", f"-d {POD_NETS[family]} {local}")
    outbound = "outbound traffic is subject to MASQUERADE (must be last in chain)"
    tables.add("nat", "IP-MASQ-AGENT", f'-m comment --comment "ip-masq-agent: {outbound}" -j MASQUERADE')


def hostport_chain(pod: PodPlan) -> str:
    """Return the CNI-DN-… chain of a pod with a hostPort."""
    return "CNI-DN-" + base64.b16encode(sha512(pod.key.encode()).digest()).decode().lower()[:21]


def _portmap(tables: Tables, pods: list[PodPlan], family: int) -> None:
    for chain in ("PREROUTING", "OUTPUT"):
        tables.add("nat", chain, "-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT")
    tables.add("nat", "POSTROUTING", '-m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ')
    tables.add("nat", "CNI-HOSTPORT-MASQ", "-m mark --mark 0x2000/0x2000 -j MASQUERADE")
    mark = '-m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000'
    tables.add("nat", "CNI-HOSTPORT-SETMARK", mark)
    bits = 24 if family == 4 else 64
    for pod in pods:
        chain, ip = hostport_chain(pod), by_family(pod.ips, family)
        says = f'-m comment --comment "dnat name: cbr0 id: {pod.key}"'
        target = f"[{ip}]:{pod.ports[0][2]}" if family == 6 else f"{ip}:{pod.ports[0][2]}"
        port = f"-p tcp -m tcp --dport {pod.host_port}"
        tables.add("nat", "CNI-HOSTPORT-DNAT", f"-p tcp {says} -m multiport --dports {pod.host_port} -j {chain}")
        own = ip_interface(f"{ip}/{bits}").network
        tables.add("nat", chain, f"-s {own} {port} -j CNI-HOSTPORT-SETMARK")
        if family == 4:
            tables.add("nat", chain, f"-s 127.0.0.1/32 {port} -j CNI-HOSTPORT-SETMARK")
        tables.add("nat", chain, f"{port} -j DNAT --to-destination {target}")
