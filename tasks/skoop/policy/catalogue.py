"""Which policies are there, and in which order are they asked? All objects, whatever their API, brought into tiers.

Without Calico's tiers there are three: the administrator's, the namespaces' (NetworkPolicy, Cilium), the baseline. Calico asks all of
them as tiers among its own, by order (Calico documentation, Tier): the administrator's at 1,000, NetworkPolicies with order 1,000 in
the tier `default` at 1,000,000, the baseline at 10,000,000. A list that could not be read stands in its tier as a policy that may do
anything, so that only what it could change becomes unknown.
"""

import math
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import NamedTuple

from msgspec.structs import replace

from tasks.skoop.model.cluster import ClusterObjects
from tasks.skoop.policy import admin, calico, cilium, parse
from tasks.skoop.policy.clauses import ALL_PODS
from tasks.skoop.policy.peers import NobodyKnows, Reading
from tasks.skoop.policy.rules import Action, Policy, PolicyRef, Rule, Tier

ORDERS: Mapping[str, float] = {admin.ADMIN_TIER: 1e3, calico.DEFAULT_TIER: 1e6, admin.BASELINE_TIER: 1e7}
"""Tiers that are always there → their place among Calico's."""
CALICO_ALIASES: Mapping[str, str] = {
    "adminnetworkpolicy": admin.ADMIN_TIER,
    "kube-admin": admin.ADMIN_TIER,
    "baselineadminnetworkpolicy": admin.BASELINE_TIER,
    "kube-baseline": admin.BASELINE_TIER,
}
"""Calico's names of the administrator's tiers → ours."""
NETWORK_POLICY_ORDER = 1000.0
CALICO_KINDS = (calico.NAMESPACED, calico.GLOBAL)
CILIUM_KINDS = (cilium.NAMESPACED, cilium.CLUSTERWIDE)
ADMIN_KINDS = (admin.ADMIN, admin.BASELINE, admin.CLUSTER)
SET_KINDS = ("GlobalNetworkSet", "NetworkSet")
_ANYTHING = (Action.ALLOW, Action.DENY, Action.PASS)


class Catalogue(NamedTuple):
    """All policies in tiers, in the order in which they are asked; `bad`: objects beside policies that could not be read."""

    tiers: tuple[Tier, ...]
    bad: tuple[str, ...] = ()

    @property
    def policies(self) -> tuple[Policy, ...]:
        """Every policy, in order; a list that could not be read is among them."""
        return tuple(policy for tier in self.tiers for rank in tier.ranks for policy in rank)


def catalogue(objects: ClusterObjects) -> Catalogue:
    """Return the policies of a cluster. Bad objects are in it as policies with `defects`; raises nothing."""
    known, bad = calico.read_tiers(objects.policies.get("Tier", ()))
    calicos = {replace(tier, name=CALICO_ALIASES.get(tier.name, tier.name)).name: tier for tier in known}
    grouped: dict[str, list[Policy]] = {name: [] for name in ORDERS}
    for policy in (*_all(objects), *_unread(objects)):
        grouped.setdefault(CALICO_ALIASES.get(policy.tier, policy.tier) or calico.DEFAULT_TIER, []).append(policy)
    tiers = []
    for name, policies in grouped.items():
        tier = calicos.get(name)
        order = ORDERS.get(name, tier.order if tier else math.inf)
        default = Action.PASS if name in (admin.ADMIN_TIER, admin.BASELINE_TIER) else Action.DENY
        if tier is not None:
            default = tier.default
        elif name not in ORDERS:
            bad = (*bad, f"Tier {name} is named by a policy, but there is no such tier")
        tiers.append((order, Tier(name=name, ranks=_ranks(policies), default=default)))
    return Catalogue(tuple(tier for _, tier in sorted(tiers, key=lambda item: (item[0], item[1].name))), bad)


def reading_of(objects: ClusterObjects) -> Reading:
    """Return whom an ipBlock matches here: with Cilium's policies or agents what is outside, else every address."""
    agents = any(pod.labels.get("k8s-app") == "cilium" for pod in objects.pods)
    policies = any(objects.policies.get(kind) for kind in CILIUM_KINDS)
    return Reading.OUTSIDE_ONLY if agents or policies else Reading.EVERY_ADDRESS


def _ranks(policies: Iterable[Policy]) -> tuple[tuple[Policy, ...], ...]:
    """Return policies by rank. Policies of one rank have no order, but for Calico's, whose names are part of the rank."""
    ordered = sorted(policies, key=lambda policy: (policy.rank, str(policy.ref)))
    return tuple(tuple(group) for _, group in groupby(ordered, key=lambda policy: policy.rank))


def _all(objects: ClusterObjects) -> Iterable[Policy]:
    calicos = any(objects.policies.get(kind) for kind in CALICO_KINDS)
    for number, text in enumerate(objects.network_policies):
        policy = parse.read_network_policy(text, number)
        yield replace(policy, rank=(1, NETWORK_POLICY_ORDER, "")) if calicos else policy
    for kind in ADMIN_KINDS:
        for number, text in enumerate(objects.policies.get(kind, ())):
            yield admin.read_admin_policy(kind, text, number)
    sets = tuple(
        one for kind in SET_KINDS for text in objects.policies.get(kind, ()) if (one := calico.read_network_set(text))
    )
    for kind in CALICO_KINDS:
        for number, text in enumerate(objects.policies.get(kind, ())):
            yield calico.read_calico_policy(kind, text, sets, number)
    for kind in CILIUM_KINDS:
        for number, text in enumerate(objects.policies.get(kind, ())):
            yield from cilium.read_cilium_policies(kind, text, number)


_LISTS: Mapping[str, tuple[str, str, tuple[Action, ...]]] = {
    "networkpolicies": (parse.KIND, calico.DEFAULT_TIER, (Action.ALLOW,)),
    "adminnetworkpolicies": (admin.ADMIN, admin.ADMIN_TIER, _ANYTHING),
    "baselineadminnetworkpolicies": (admin.BASELINE, admin.BASELINE_TIER, _ANYTHING),
    "clusternetworkpolicies": (admin.CLUSTER, admin.ADMIN_TIER, _ANYTHING),
    "caliconetworkpolicies": (calico.NAMESPACED, calico.DEFAULT_TIER, _ANYTHING),
    "globalnetworkpolicies": (calico.GLOBAL, calico.DEFAULT_TIER, _ANYTHING),
    "ciliumnetworkpolicies": (cilium.NAMESPACED, cilium.TIER, _ANYTHING[:2]),
    "ciliumclusterwidenetworkpolicies": (cilium.CLUSTERWIDE, cilium.TIER, _ANYTHING[:2]),
}
"""List that may be missing → its kind, its tier, and what its rules may do."""


def _unread(objects: ClusterObjects) -> Iterable[Policy]:
    for name, (kind, tier, actions) in _LISTS.items():
        if name not in objects.missing:
            continue
        reason = f"{name} could not be read ({objects.missing[name]}): allow the collector to list them"
        rules = tuple(Rule(index=0, action=action, doubt=reason) for action in actions)
        yield Policy(
            ref=PolicyRef(kind=kind, name="(list not read)"),
            subject=NobodyKnows(reason=reason, within=ALL_PODS),
            tier=tier,
            rank=(1, NETWORK_POLICY_ORDER, "") if tier == calico.DEFAULT_TIER else (0, -1.0, ""),
            ingress=rules,
            egress=rules,
            transport_only=kind == parse.KIND,
        )
