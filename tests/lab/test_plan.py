"""Plans, names and objects of labs: pure values that fit together."""

import pytest

from lab.errors import BadRequest
from lab.names import source_netns, target_address
from lab.objects import all_objects
from lab.plan import Kind, make_plan


@pytest.mark.parametrize("nodes", [2, 3, 4])
@pytest.mark.parametrize("families", [(4,), (6,), (4, 6), (6, 4)], ids=str)
def test_no_address_or_device_is_given_twice(nodes: int, families: tuple[int, ...]) -> None:
    plan = make_plan(Kind.FLANNEL_VXLAN, nodes=nodes, families=families)
    ips = [ip for machine in plan.machines for ip in machine.ips]
    macs = [machine.mac for machine in plan.machines]
    veths = [pod.veth for pod in plan.pods]
    assert len(plan.nodes) == nodes
    for given in (ips, macs, veths, [pod.key for pod in plan.pods]):
        assert len(given) == len(set(given))
    assert all(len(machine.ips) == len(families) for machine in plan.machines)


@pytest.mark.parametrize("families", [(4,), (6,), (4, 6)], ids=str)
def test_objects_name_the_same_addresses_as_the_plan(families: tuple[int, ...]) -> None:
    plan = make_plan(Kind.FLANNEL_VXLAN, families=families)
    objects = all_objects(plan)
    pods = {f"{o['metadata']['namespace']}/{o['metadata']['name']}": o for o in objects["pods"]["items"]}
    for pod in plan.pods:
        assert [entry["ip"] for entry in pods[pod.key]["status"]["podIPs"]] == list(pod.ips)
    for one in objects["endpointslices"]["items"]:
        for endpoint in one["endpoints"]:
            assert all((":" in ip) == (one["addressType"] == "IPv6") for ip in endpoint["addresses"])
    slow = next(o for o in objects["endpointslices"]["items"] if o["metadata"]["name"].startswith("slow-"))
    assert [endpoint["conditions"]["ready"] for endpoint in slow["endpoints"]] == [False]


def test_flannel_annotations_are_there_for_flannel_only() -> None:
    def notes(kind: Kind) -> dict[str, str]:
        (first, *_) = all_objects(make_plan(kind))["nodes"]["items"]
        return {key: value for key, value in first["metadata"]["annotations"].items() if "flannel" in key}

    prefix = "flannel.alpha.coreos.com/"
    vxlan = notes(Kind.FLANNEL_VXLAN)
    assert vxlan[f"{prefix}backend-data"] == '{"VNI":1,"VtepMAC":"9a:7c:10:24:40:01"}'
    assert notes(Kind.FLANNEL_HOST_GW)[f"{prefix}backend-data"] == "null"
    assert notes(Kind.BRIDGE) == {}


@pytest.mark.parametrize(
    ("name", "family", "want"),
    [
        pytest.param("svc/shop/web", 4, ("10.96.10.1", 80), id="a service, its first port"),
        pytest.param("svc/shop/api:grpc", 6, ("fd00:10:96::a04", 9090), id="a named port, IPv6"),
        pytest.param("svc/shop/api:9090", 4, ("10.96.10.4", 9090), id="a numbered port"),
        pytest.param("shop/web-1", 4, ("10.244.1.4", 8080), id="a pod"),
        pytest.param("n2", 4, ("172.18.0.12", 0), id="a node has no port of its own"),
        pytest.param("FD00::1", 4, ("fd00::1", 0), id="an address is taken as it is"),
    ],
)
def test_target_names(name: str, family: int, want: tuple[str, int]) -> None:
    assert target_address(make_plan(Kind.BRIDGE), name, family) == want


@pytest.mark.parametrize("name", ["shop/nobody", "svc/shop/nobody", "svc/shop/api-headless", "svc/shop/web:ftp"])
def test_unknown_targets_are_refused_with_what_is_known(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        target_address(make_plan(Kind.BRIDGE), name, 4)
    assert name.rpartition(":")[2] in str(caught.value)


def test_a_source_may_be_an_address() -> None:
    plan = make_plan(Kind.BRIDGE)
    assert source_netns(plan, "10.244.1.4") == source_netns(plan, "shop/web-1") == "pod/shop/web-1"
    with pytest.raises(BadRequest):
        source_netns(plan, "192.0.2.1")
