"""Which NetworkPolicies select a pod, and in which directions do they isolate it?

Follows the API's definition of podSelector and policyTypes (networking.k8s.io/v1). What a policy then allows is not looked at.
Pods on the host's network are never selected.
"""

from collections.abc import Iterable

import msgspec
from msgspec import Struct

from tasks.skoop.model.cluster import PodMeta


class Requirement(Struct, frozen=True, kw_only=True):
    """One expression of a label selector."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def holds(self, labels: dict[str, str]) -> bool:
        """Say whether labels meet the requirement; NotIn holds where the key is absent."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels
            case _:
                return False


class Selector(Struct, frozen=True, kw_only=True, rename="camel"):
    """A label selector; an empty one selects everything."""

    match_labels: dict[str, str] = {}
    match_expressions: tuple[Requirement, ...] = ()

    def selects(self, labels: dict[str, str]) -> bool:
        """Say whether the selector selects an object with these labels."""
        wanted = all(labels.get(key) == value for key, value in self.match_labels.items())
        return wanted and all(requirement.holds(labels) for requirement in self.match_expressions)


class PolicySpec(Struct, frozen=True, kw_only=True, rename="camel"):
    """The part of a NetworkPolicy that says whom it concerns."""

    pod_selector: Selector = Selector()
    policy_types: tuple[str, ...] | None = None
    egress: tuple[msgspec.Raw, ...] | None = None

    @property
    def directions(self) -> tuple[str, ...]:
        """`Ingress`, `Egress`, or both; as the API defaults them."""
        if self.policy_types is not None:
            return self.policy_types
        return ("Ingress", "Egress") if self.egress else ("Ingress",)


class PolicyMeta(Struct, frozen=True, kw_only=True):
    """Name and namespace of a NetworkPolicy."""

    name: str = ""
    namespace: str = "default"


class Policy(Struct, frozen=True, kw_only=True):
    """A NetworkPolicy object, as far as it is read here."""

    metadata: PolicyMeta
    spec: PolicySpec = PolicySpec()


class Selecting(Struct, frozen=True, kw_only=True):
    """A policy that selects a pod: `namespace/name`, and the directions in which the pod is isolated by it."""

    policy: str
    directions: tuple[str, ...]


def read_policies(objects: Iterable[str]) -> tuple[Policy, ...]:
    """Return the policies of `ClusterObjects.network_policies`; objects that are none are left out."""
    found = []
    for text in objects:
        try:
            found.append(msgspec.json.decode(text, type=Policy))
        except msgspec.MsgspecError:
            continue
    return tuple(found)


def policies_selecting(pod: PodMeta, policies: Iterable[Policy]) -> tuple[Selecting, ...]:
    """Return the policies that select a pod, by name."""
    if pod.host_network:
        return ()
    return tuple(
        Selecting(policy=f"{policy.metadata.namespace}/{policy.metadata.name}", directions=policy.spec.directions)
        for policy in policies
        if policy.metadata.namespace == pod.namespace and policy.spec.pod_selector.selects(pod.labels)
    )
