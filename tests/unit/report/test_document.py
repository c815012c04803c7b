import json
from typing import Any

import jsonschema
import msgspec
import pytest
from msgspec.structs import replace

from tasks.skoop.model.diagnosis import ServerSees
from tasks.skoop.report.document import DiagnosisDocument, Extent, render, schema
from tasks.skoop.report.pair_line import line_json
from tests.unit.report import samples
from tests.unit.report.golden import expect


def decoded(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(data)
    return found


@pytest.mark.parametrize("extent", Extent)
@pytest.mark.parametrize("name", samples.ALL)
def test_the_document_keeps_the_schema(name: str, extent: Extent) -> None:
    jsonschema.validate(decoded(render(samples.ALL[name](), extent)), schema())


def test_the_schema_is_a_schema_and_refuses_what_lacks_a_member() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    document = decoded(render(samples.fails()))
    del document["verdict"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema())


def test_the_whole_document() -> None:
    expect("fails.json", json.dumps(decoded(render(samples.fails())), indent=1) + "\n")


def test_it_decodes_to_what_was_encoded() -> None:
    data = render(samples.fails())
    assert msgspec.json.encode(msgspec.json.decode(data, type=DiagnosisDocument)) == data


def test_links_and_actions_refer_to_each_other() -> None:
    document = decoded(render(samples.fails()))
    (link,) = document["links"]
    client, node = document["nodes"]
    assert (link["source"], link["destination"], link["action"]) == (client["id"], node["id"], "drop")
    assert client["actions"] == [{"type": "send", "input": None, "outputs": [link["id"]]}]
    assert node["actions"][0]["input"] == link["id"]
    assert node["suspicions"][0]["code"] == "KP-VXLAN-008"
    assert document["cluster"]["suspicions"][0]["code"] == "KP-K8S-015"


def test_who_answered_and_what_it_saw() -> None:
    (outcome,) = decoded(render(samples.works()))["outcomes"]
    assert outcome["server_sees"] == {"netns": "pod/shop/web-3", "pod": "shop/web-3", "src": "10.244.1.4", "port": 8080}
    on_node = replace(samples.works(), outcomes=(replace(samples.CONNECTED, server_sees=_on_node()),))
    assert decoded(render(on_node))["outcomes"][0]["server_sees"]["pod"] is None


def _on_node() -> ServerSees:
    return ServerSees(netns="node/n1", src="10.244.1.4", port=22)


def test_the_answer_to_one_of_many_is_one_line_without_the_way() -> None:
    line = line_json({"src": "shop/client-1", "dst": "svc/shop/web", "dport": 80}, samples.partly())
    assert b"\n" not in line
    document = decoded(line)
    assert document["pair"]["dst"] == "svc/shop/web"
    assert document["client_sees"] == {"connected": pytest.approx(2 / 3), "timeout": pytest.approx(1 / 3)}
    assert all(outcome["forward"]["steps"] == [] for outcome in document["outcomes"])
    assert document["nodes"] == []
    jsonschema.validate(document, schema())
