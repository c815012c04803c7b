import pytest

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.cluster import NodeMeta, Service, ServicePort
from tasks.skoop.model.ids import NodeName
from tasks.skoop.service.selection import Backend, categorize

HERE, THERE = NodeName("here"), NodeName("there")
NODE = NodeMeta(name=HERE, labels={"topology.kubernetes.io/zone": "a"})
HINTS = {"service.kubernetes.io/topology-mode": "Auto"}


def _end(name: str) -> Backend:
    """Return an endpoint from a word: r ready, s serving while terminating, x neither; h here, t elsewhere; zone."""
    state, place, zone = name[0], name[1], name[2:]
    return Backend(
        ip=Ip(f"10.0.0.{ord(state) + ord(place)}"),
        port=80,
        node=HERE if place == "h" else THERE,
        ready=state == "r",
        serving=state in "rs",
        terminating=state == "s",
        zones=(zone,) if zone else (),
    )


def _service(internal: str = "Cluster", external: str = "Cluster", hints: bool = False) -> Service:
    return Service(
        namespace="shop",
        name="web",
        internal_traffic_policy=internal,
        external_traffic_policy=external,
        annotations=HINTS if hints else {},
    )


@pytest.mark.parametrize(
    ("service", "node_port", "ends", "cluster", "local", "usable"),
    [
        pytest.param(_service(), 0, "rh rt", "rh rt", "", True, id="all ready endpoints"),
        pytest.param(_service(), 0, "rh xt st", "rh", "", True, id="not those that are not ready"),
        pytest.param(_service(), 0, "xh st", "st", "", True, id="terminating ones that serve if there is no other"),
        pytest.param(_service(), 0, "xh xt", "", "", False, id="none"),
        pytest.param(_service(internal="Local"), 0, "rh rt", "", "rh", True, id="internal policy Local"),
        pytest.param(_service(internal="Local"), 0, "rt", "", "", True, id="internal policy Local, all elsewhere"),
        pytest.param(_service(external="Local"), 30000, "rh rt", "rh rt", "rh", True, id="external policy Local"),
        pytest.param(
            _service(external="Local"), 30000, "sh rt", "rt", "sh", True, id="terminating local one serves on"
        ),
        pytest.param(_service(external="Local"), 30000, "rh sh", "rh", "rh", True, id="not beside a ready local one"),
        pytest.param(_service(external="Local"), 0, "rh rt", "rh rt", "", True, id="external policy of an inside port"),
        pytest.param(
            _service(internal="Local", external="Local"), 30000, "rh rt", "rh rt", "rh", True, id="both policies Local"
        ),
        pytest.param(_service(hints=True), 0, "rha rtb", "rha", "", True, id="own zone only"),
        pytest.param(_service(hints=True), 0, "rha rt", "rha rt", "", True, id="no zones unless all have hints"),
        pytest.param(_service(hints=True), 0, "rhb rtc", "rhb rtc", "", True, id="no zones if the own has none"),
        pytest.param(_service(), 0, "rha rtb", "rha rtb", "", True, id="no zones unless the Service asks"),
    ],
)
def test_a_node_uses(service: Service, node_port: int, ends: str, cluster: str, local: str, usable: bool) -> None:
    found = categorize(service, ServicePort(port=80, node_port=node_port), [_end(name) for name in ends.split()], NODE)
    assert (found.cluster, found.local, found.usable_anywhere) == (
        tuple(_end(name) for name in cluster.split()),
        tuple(_end(name) for name in local.split()),
        usable,
    )
