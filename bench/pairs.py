"""How long one question takes in a small cluster: random pods, Services and nodes of the recorded one, TCP with a payload.

The yardstick is a JSON document that the standard library reads in the same run: a machine that is busy or slow is so for both.
"""

import json
import random
import time
from types import SimpleNamespace

from tasks.skoop.diagnostor import Diagnostor
from tasks.skoop.model.addr import Ip
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.endpoint import Endpoint, EndpointType, Question

SEED = 20261122
BATCH = 50
KIND = "InternalIP"
DOCUMENT = json.dumps([{"number": number, "words": [str(number)] * 5, "half": number / 2} for number in range(1000)])


def random_pairs(state: ClusterState, count: int) -> list[Question]:
    """Return questions from a pod to a pod, to a Service, or to a node, each by a source port of its own."""
    chance = random.Random(SEED)
    pods = [pod for pod in state.objects.pods if not pod.host_network and pod.ips]
    sources = [Endpoint(ip=pod.ips[0], type=EndpointType.POD, name=pod.key, netns=pod.netns) for pod in pods]
    goals = [Endpoint(ip=pod.ips[0], port=chance.choice((80, 8080, 5432))) for pod in pods]
    goals += [
        Endpoint(ip=Ip(service.cluster_ips[0]), port=port.port)
        for service in state.objects.services
        if service.cluster_ips and service.cluster_ips[0] != "None"
        for port in service.ports
    ]
    goals += [
        Endpoint(ip=Ip(ip), port=10250) for node in state.objects.nodes for kind, ip in node.addresses if kind == KIND
    ]
    return [
        Question(src=chance.choice(sources), dst=chance.choice(goals), sport=20000 + number, payload_bytes=200)
        for number in range(count)
    ]


def diagnose_pairs(state: ClusterState, count: int) -> tuple[float, float]:
    """Return the CPU seconds of one question and of one reading of DOCUMENT, each the median of the batches."""
    asked = random_pairs(state, count)
    diagnostor = Diagnostor(SimpleNamespace(state=state))
    batches, readings = [], []
    for first in range(0, count, BATCH):
        began = time.process_time()
        json.loads(DOCUMENT)
        readings.append(time.process_time() - began)
        batch = asked[first : first + BATCH]
        began = time.process_time()
        for question in batch:
            diagnostor.diagnose(question)
        batches.append((time.process_time() - began) / len(batch))
    return sorted(batches)[len(batches) // 2], sorted(readings)[len(readings) // 2]
