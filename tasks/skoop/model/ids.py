"""How things are named: nodes, pods, namespaces of the network. Identity is an id, never the object."""

from typing import NewType

NodeName = NewType("NodeName", str)
"""Name of a Kubernetes node, or of a host beside the cluster."""
PodKey = NewType("PodKey", str)
"""`namespace/name` of a pod."""
NetnsId = NewType("NetnsId", str)
"""Which network namespace: `node/<name>`, `pod/<namespace>/<name>` or `host/<name>` (a host outside the cluster).

A pod with hostNetwork has no id of its own: it lives in its node's."""


def node_netns(name: str) -> NetnsId:
    """Return the id of a node's own network namespace."""
    return NetnsId(f"node/{name}")


def pod_netns(key: str) -> NetnsId:
    """Return the id of a pod's network namespace; `key` is `namespace/name`."""
    return NetnsId(f"pod/{key}")


def host_netns(name: str) -> NetnsId:
    """Return the id of a collected host that is not in the cluster."""
    return NetnsId(f"host/{name}")


def pod_key(namespace: str, name: str) -> PodKey:
    """Return `namespace/name`."""
    return PodKey(f"{namespace}/{name}")
