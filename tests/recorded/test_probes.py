"""The hand-made probes of the two base clusters (one line each) must be foretold as well."""

import json
import re
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.skoop.collect.dumps import load_dumps
from tasks.skoop.diagnostor import Diagnostor
from tasks.skoop.model.addr import Ip
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.endpoint import Endpoint, Question
from tasks.skoop.model.ids import NetnsId, host_netns
from tasks.skoop.model.trace import View
from tests.recorded.recordings import BASE, NAMESPACE_OF, unpack

EXT = "172.18.0.100"
LINE = re.compile(r"^(?P<who>\S+) .*?(?P<ip>\d+\.\d+\.\d+\.\d+):(?P<port>\d+) -> (?P<what>FAIL rc=\d+|\{.*)$")
BY_CURL = {"7": {View.REFUSED, View.UNREACHABLE}, "28": {View.TIMEOUT}}


def source(state: ClusterState, who: str) -> Endpoint:
    if who == "ext":
        netns = host_netns("ext")
        assert netns in state.netns
        return Endpoint(ip=Ip(EXT), netns=netns)
    node = who.partition("@")[2]
    pod = next(pod for pod in state.objects.pods if pod.node_name == node and pod.name.startswith("client-"))
    return Endpoint(ip=pod.ips[0], netns=pod.netns)


@pytest.mark.parametrize("name", ["iptables-nft-kp1.28", "nftables-kp1.30"])
def test_probes_are_foretold(name: str, tmp_path: Path) -> None:
    folder = unpack(BASE / f"{name}.tar.zst", tmp_path)
    state = load_dumps(folder)
    diagnostor = Diagnostor(SimpleNamespace(state=state))
    lines = (folder / "probes.txt").read_text().splitlines()
    measured: dict[tuple[str, str, int], list[str]] = defaultdict(list)
    for line in lines:
        if (hit := LINE.match(line)) is not None:
            measured[hit["who"], hit["ip"], int(hit["port"])].append(hit["what"])
    known = 0
    for (who, ip, port), answers in measured.items():
        diagnosis = diagnostor.diagnose(Question(src=source(state, who), dst=Endpoint(ip=Ip(ip), port=port)))
        views = {view for view, share in diagnosis.client_sees.items() if share > 1e-9}
        assert View.UNKNOWN not in views, (who, ip, port, diagnosis.missing)
        known += 1
        seen = {
            (outcome.server_sees.netns.rsplit("/", 1)[-1], outcome.server_sees.src)
            for outcome in diagnosis.outcomes
            if outcome.server_sees
        }
        for answer in answers:
            if answer.startswith("FAIL"):
                assert views & BY_CURL[answer.partition("rc=")[2]], (who, ip, port, answer, views)
            else:
                assert View.CONNECTED in views, (who, ip, port, answer, views)
                told = json.loads(answer) if answer.rstrip().endswith("}") else {}
                if "pod" in told:
                    server = NAMESPACE_OF.get(told["pod"], told["pod"])
                    assert (server, told["client"]) in seen, (who, ip, port, answer, seen)
    assert known >= 20


def test_a_node_reaches_a_service(tmp_path: Path) -> None:
    folder = unpack(BASE / "iptables-nft-kp1.28.tar.zst", tmp_path)
    diagnostor = Diagnostor(SimpleNamespace(state=load_dumps(folder)))
    question = Question(
        src=Endpoint(ip=Ip("172.18.0.11"), netns=NetnsId("node/n1")), dst=Endpoint(ip=Ip("10.96.10.1"), port=80)
    )
    diagnosis = diagnostor.diagnose(question)
    assert set(diagnosis.client_sees) == {View.CONNECTED}
    seen = {
        (outcome.server_sees.netns, outcome.server_sees.src) for outcome in diagnosis.outcomes if outcome.server_sees
    }
    assert ("pod/shop/web-776fb8b5b9-h8kb6", "10.244.1.0") in seen
