import json

import pytest

from tasks.skoop.model.cluster import PodMeta
from tasks.skoop.policy.selecting import policies_selecting, read_policies

POD = PodMeta(namespace="shop", name="web-1", labels={"app": "web", "tier": "front"})
EXPRESSION = {"key": "tier", "operator": "In", "values": ["front"]}


def _policy(selector: object, namespace: str = "shop", **spec: object) -> str:
    return json.dumps({"metadata": {"name": "p", "namespace": namespace}, "spec": {"podSelector": selector, **spec}})


@pytest.mark.parametrize(
    ("policy", "directions"),
    [
        pytest.param(_policy({}), ("Ingress",), id="empty selector selects all, ingress by default"),
        pytest.param(_policy({}, egress=[{}]), ("Ingress", "Egress"), id="egress rules add the direction"),
        pytest.param(_policy({}, egress=[]), ("Ingress",), id="an empty list of them does not"),
        pytest.param(_policy({}, policyTypes=["Egress"]), ("Egress",), id="types as given"),
        pytest.param(_policy({"matchLabels": {"app": "web"}}), ("Ingress",), id="label"),
        pytest.param(_policy({"matchLabels": {"app": "db"}}), None, id="another label"),
        pytest.param(_policy({"matchExpressions": [EXPRESSION]}), ("Ingress",), id="In"),
        pytest.param(_policy({"matchExpressions": [{**EXPRESSION, "operator": "NotIn"}]}), None, id="NotIn"),
        pytest.param(
            _policy({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}),
            ("Ingress",),
            id="NotIn of a label that is not there",
        ),
        pytest.param(_policy({"matchExpressions": [{"key": "app", "operator": "Exists"}]}), ("Ingress",), id="Exists"),
        pytest.param(
            _policy({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}), None, id="not exists"
        ),
        pytest.param(_policy({}, namespace="other"), None, id="another namespace"),
        pytest.param("[]", None, id="no policy at all"),
    ],
)
def test_a_policy_selects_the_pod(policy: str, directions: tuple[str, ...] | None) -> None:
    found = policies_selecting(POD, read_policies([policy]))
    assert [item.directions for item in found] == ([] if directions is None else [directions])


def test_a_pod_on_the_hosts_network_is_never_selected() -> None:
    host = PodMeta(namespace="shop", name="agent", host_network=True)
    assert policies_selecting(host, read_policies([_policy({})])) == ()
