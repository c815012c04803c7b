"""How kube-proxy's iptables mode names its chains and writes its rules.

Source: pkg/proxy/iptables/proxier.go (servicePortPolicyClusterChain and its sisters, writeServiceToEndpointRules), v1.28.
"""

from base64 import b32encode
from functools import lru_cache
from hashlib import sha256

from msgspec import Struct

from tasks.skoop.model.addr import host_net
from tasks.skoop.service.selection import Backend, PortName

MARK_CHAIN = "KUBE-MARK-MASQ"
POSTROUTING = "KUBE-POSTROUTING"
SERVICES = "KUBE-SERVICES"
NODEPORTS = "KUBE-NODEPORTS"
EXTERNAL = "KUBE-EXTERNAL-SERVICES"
FORWARD = "KUBE-FORWARD"
DEFAULT_MARK = "0x4000/0x4000"


class Chains(Struct, frozen=True, kw_only=True):
    """Names of the chains of one Service port."""

    cluster: str
    local: str
    external: str
    firewall: str


@lru_cache(maxsize=1 << 16)
def _hash(text: str) -> str:
    return b32encode(sha256(text.encode()).digest()).decode()[:16]


def chains_of(port: PortName) -> Chains:
    """Return the names of the chains of a Service port."""
    digest = _hash(f"{port}{port.protocol}")
    return Chains(
        cluster=f"KUBE-SVC-{digest}",
        local=f"KUBE-SVL-{digest}",
        external=f"KUBE-EXT-{digest}",
        firewall=f"KUBE-FW-{digest}",
    )


def endpoint_chain(port: PortName, backend: Backend) -> str:
    """Return the name of the chain of one endpoint of a Service port."""
    return f"KUBE-SEP-{_hash(f'{port}{port.protocol}{backend.text}')}"


def balance_rule(port: PortName, backend: Backend, share: float) -> str:
    """Return the rule of a Service's chain that sends `share` (0 to 1) of what reaches it to an endpoint."""
    chance = f"-m statistic --mode random --probability {share:.11f} " if share < 1 else ""
    return f'-m comment --comment "{port} -> {backend.text}" {chance}-j {endpoint_chain(port, backend)}'


def own_traffic_rule(port: PortName, backend: Backend) -> str:
    """Return the rule of an endpoint's chain that masquerades the endpoint's own traffic."""
    return f'-s {host_net(backend.ip)} -m comment --comment "{port}" -j {MARK_CHAIN}'


def dnat_rule(port: PortName, backend: Backend, *, affinity: bool = False) -> str:
    """Return the rule of an endpoint's chain that translates to it."""
    chain, proto = endpoint_chain(port, backend), port.protocol
    mask = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" if ":" in backend.ip else "255.255.255.255"
    recent = f"-m recent --set --name {chain} --mask {mask} --rsource " if affinity else ""
    return f'-p {proto} -m comment --comment "{port}" {recent}-m {proto} -j DNAT --to-destination {backend.text}'


def dispatch_rule(port: PortName, ip: str, number: int, what: str, target: str) -> str:
    """Return the rule of KUBE-SERVICES that catches an address and port; `what` is `cluster IP`, `external IP` …"""
    proto = port.protocol
    return f'-d {_prefix(ip)} -p {proto} -m comment --comment "{port} {what}" -m {proto} --dport {number} -j {target}'


def node_port_rule(port: PortName, number: int, target: str) -> str:
    """Return the rule of KUBE-NODEPORTS that catches a node port."""
    return f'-p {port.protocol} -m comment --comment "{port}" -m {port.protocol} --dport {number} -j {target}'


def reject_rule(port: PortName, ip: str, number: int) -> str:
    """Return the filter rule that refuses connections to a cluster IP without endpoints."""
    proto, version = port.protocol, "icmp6" if ":" in ip else "icmp"
    return (
        f'-d {_prefix(ip)} -p {proto} -m comment --comment "{port} has no endpoints" '
        f"-m {proto} --dport {number} -j REJECT --reject-with {version}-port-unreachable"
    )


def outside_masquerade_rule(port: PortName, ip: str, number: int, outside: str) -> str:
    """Return the first rule of a Service's chain: traffic that is not the pods' is marked. `outside` is `! -s NET ` or ""."""
    return f"{outside}{dispatch_rule(port, ip, number, 'cluster IP', MARK_CHAIN)}"


def _prefix(ip: str) -> str:
    return f"{ip}/128" if ":" in ip else f"{ip}/32"
