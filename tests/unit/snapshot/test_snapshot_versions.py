"""Every format that a release ever wrote is read for ever: one recorded file per version."""

from pathlib import Path

import pytest

from tasks.skoop.model.ids import node_netns, pod_netns
from tasks.skoop.snapshot import load, verify
from tasks.skoop.snapshot.layout import NEEDS, VERSION

DATA = Path(__file__).parent / "data"


def test_each_version_has_its_recorded_file() -> None:
    assert sorted(NEEDS) == list(range(1, VERSION + 1))
    assert sorted(file.name for file in DATA.glob("*.kps")) == [f"v{version}.kps" for version in sorted(NEEDS)]


@pytest.mark.parametrize("version", sorted(NEEDS))
def test_a_recorded_file_of_each_version_is_read(version: int) -> None:
    path = DATA / f"v{version}.kps"
    assert verify(path).blobs > 100
    state = load(path)
    node = state.netns[node_netns("n1")]
    chains = {chain.name for table in node.tables if table.name == "nat" for chain in table.chains}
    assert {"KUBE-SERVICES", "FLANNEL-POSTRTG"} <= chains
    vxlan = node.interface("flannel.1")
    assert vxlan is not None
    assert vxlan.vxlan is not None
    assert (vxlan.vxlan.port, vxlan.mtu) == (8472, 1450)
    pods = [pod for pod in state.objects.pods if not pod.host_network]
    assert all(pod_netns(pod.key) in state.netns for pod in pods)
    assert len(state.objects.services) == 17
