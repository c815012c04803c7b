"""How long one question takes on a node with 10,000 services: a pod of that node opens a connection to a ClusterIP.

Every question is another service, so that no answer comes from the memory of an earlier one; the first question, which
compiles the rule set, is reported apart.
"""

import random
import time
from collections.abc import Iterator
from itertools import islice

from bench.recorded import NODE
from tasks.skoop.diagnostor import Diagnostor
from tasks.skoop.model.addr import Ip
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.endpoint import Endpoint, EndpointType, Question
from tasks.skoop.model.xtables import XTable
from tasks.skoop.network import Network

SEED = 20261121


def cluster_ips(tables: tuple[XTable, ...]) -> list[tuple[Ip, int]]:
    """Return (ClusterIP, port) of every TCP service in the nat table's KUBE-SERVICES chain."""
    found = []
    for rule in (rule for table in tables if table.name == "nat" for chain in table.chains for rule in chain.rules):
        if not rule.target.name.startswith("KUBE-SVC-"):
            continue
        options = {name: values for match in rule.matches for name, _, values in match.options}
        if "dst" in options and "dport" in options and options.get("proto") == ("tcp",):
            found.append((Ip(options["dst"][0].removesuffix("/32")), int(options["dport"][0])))
    return found


def questions(state: ClusterState, tables: tuple[XTable, ...]) -> Iterator[Question]:
    """Yield questions from pods of NODE to different services at random, each service once."""
    pods = [pod for pod in state.objects.pods if pod.node_name == NODE and not pod.host_network and pod.ips]
    sources = [Endpoint(ip=pod.ips[0], type=EndpointType.POD, name=pod.key, netns=pod.netns) for pod in pods if pod.ips]
    chance = random.Random(SEED)
    services = cluster_ips(tables)
    chance.shuffle(services)
    for ip, port in services:
        yield Question(src=chance.choice(sources), dst=Endpoint(ip=ip, type=EndpointType.SERVICE, port=port))


def simulate(state: ClusterState, tables: tuple[XTable, ...], rounds: int) -> tuple[float, list[float]]:
    """Return the seconds of the first question, set-up included, and of each of `rounds` questions after it."""
    asked = questions(state, tables)
    began = time.perf_counter()
    diagnostor = Diagnostor(Network(state))
    diagnostor.diagnose(next(asked))
    first = time.perf_counter() - began
    return first, [_seconds(diagnostor, question) for question in islice(asked, rounds)]


def _seconds(diagnostor: Diagnostor, question: Question) -> float:
    began = time.perf_counter()
    diagnostor.diagnose(question)
    return time.perf_counter() - began
