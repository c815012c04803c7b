"""Which objects are policies of another API than Kubernetes' own, and what of them is kept?

The administrator's policies (policy.networking.k8s.io), Calico's with their tiers and network sets, Cilium's. Some share a kind with
others, so that the API group tells them apart. Each is kept as JSON text, without what says nothing about traffic; one that is not
even an object with a name is kept as it came, so that the policy engine can name it.
"""

from collections.abc import Mapping, Sequence

from msgspec import MsgspecError, Raw, Struct, field
from msgspec.json import decode, encode
from msgspec.json import format as format_json
from msgspec.structs import replace

from tasks.skoop.parse import kube_types as k8s

POLICY_KINDS: Mapping[tuple[str, str], str] = {
    ("policy.networking.k8s.io", "AdminNetworkPolicy"): "AdminNetworkPolicy",
    ("policy.networking.k8s.io", "BaselineAdminNetworkPolicy"): "BaselineAdminNetworkPolicy",
    ("policy.networking.k8s.io", "ClusterNetworkPolicy"): "ClusterNetworkPolicy",
    ("projectcalico.org", "NetworkPolicy"): "CalicoNetworkPolicy",
    ("projectcalico.org", "GlobalNetworkPolicy"): "GlobalNetworkPolicy",
    ("projectcalico.org", "NetworkSet"): "NetworkSet",
    ("projectcalico.org", "GlobalNetworkSet"): "GlobalNetworkSet",
    ("projectcalico.org", "Tier"): "Tier",
    ("cilium.io", "CiliumNetworkPolicy"): "CiliumNetworkPolicy",
    ("cilium.io", "CiliumClusterwideNetworkPolicy"): "CiliumClusterwideNetworkPolicy",
}
"""(API group, kind) → the kind under which its objects are kept; crd.projectcalico.org is Calico's group as it is stored."""

_PLAIN_GROUPS = frozenset(("", "networking.k8s.io"))
_SHARED_KINDS = frozenset(("NetworkPolicy", *POLICY_KINDS.values()))


class _OtherPolicy(Struct, omit_defaults=True):
    """An object as it is kept."""

    metadata: k8s.Named
    api_version: str = field(name="apiVersion", default="")
    kind: str = ""
    spec: Raw = Raw(b"")
    specs: Raw = Raw(b"")


def kept_as(api_version: str, kind: str) -> str:
    """Return the kind under which an object is kept: of those that share it with another API's, a name of its own."""
    group = api_version.rpartition("/")[0].removeprefix("crd.")
    known = POLICY_KINDS.get((group, kind))
    if known is not None or group in _PLAIN_GROUPS or kind not in _SHARED_KINDS:
        return known or kind
    return f"{kind}.{group}"


def other_policies(found: Mapping[str, Sequence[Raw]]) -> dict[str, tuple[str, ...]]:
    """Return the JSON texts of these objects, for each kind of POLICY_KINDS that is there.

    Objects that were listed in both of Calico's API groups are there once.
    """
    kept = {kind: tuple(_once(found.get(kind, ()))) for kind in POLICY_KINDS.values()}
    return {kind: texts for kind, texts in kept.items() if texts}


def _once(raws: Sequence[Raw]) -> Sequence[str]:
    chosen: dict[object, tuple[bool, str]] = {}
    for number, raw in enumerate(raws):
        try:
            row = decode(raw, type=_OtherPolicy)
        except (MsgspecError, RecursionError):
            chosen[number] = (False, format_json(raw, indent=-1).decode())
            continue
        stored = row.api_version.startswith("crd.")
        name = row.metadata.name.removeprefix("default.") if stored else row.metadata.name
        key = (row.metadata.namespace, name)
        if key not in chosen or chosen[key][0]:
            chosen[key] = (stored, _text(row))
    return [text for _, text in chosen.values()]


def _text(row: _OtherPolicy) -> str:
    given = {name: value for name, value in (("spec", row.spec), ("specs", row.specs)) if bytes(value)}
    return encode(replace(row, **{name: Raw(format_json(value, indent=-1)) for name, value in given.items()})).decode()
