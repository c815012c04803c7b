"""Which steps a diagnosis is made of: their names, what they take and what they give. No code of theirs.

A DAG is built from these values alone, so a planner needs neither the collectors nor the simulator; `jobs.py` binds them to
functions. Everything here crosses a broker or a workflow engine: it is small (results at most `MAX_RESULT_BYTES` of JSON), and
what is large is a `Digest` into the run's blob store.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

if TYPE_CHECKING:
    from tasks.skoop.context import Context

MAX_RESULT_BYTES = 64 * 1024
"""A step's result, as JSON, is at most this large; a broker that carries more slows down or drops its clients."""


class Message(BaseModel):
    """Base of what passes between steps: immutable, and a field that nobody knows is an error, not a shrug."""

    model_config = ConfigDict(frozen=True, extra="forbid")


P = TypeVar("P", bound=Message)
R = TypeVar("R", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpec(Generic[P, R]):
    """A kind of step: its name (`skoop.collect`, stable, seen in Flower and Argo), parameters, result, and what it does."""

    name: str
    params: type[P]
    result: type[R]
    summary: str


@dataclass(frozen=True, slots=True)
class Binding(Generic[P, R]):
    """A step's spec and the function that does it."""

    spec: StepSpec[P, R]
    run: "Callable[[P, Context], R]"


AnyBinding: TypeAlias = Binding[Any, Any]


def table(*bindings: AnyBinding) -> Mapping[str, AnyBinding]:
    """Return bindings by the name of their step, each name once."""
    found = {binding.spec.name: binding for binding in bindings}
    assert len(found) == len(bindings), "two functions for one step"
    return found


Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
"""Name of a blob: the digest of its content."""


class SourceKind(StrEnum):
    """Where the state of a network comes from."""

    TOPOLOGY = "topology"
    SNAPSHOT = "snapshot"
    DUMPS = "dumps"


class SourceSpec(Message):
    """One source: a topology file, a snapshot (directory or `.kps` file) or a folder of dumps. `path` is absolute."""

    kind: SourceKind
    path: str

    @classmethod
    def topology(cls, file: Path) -> "SourceSpec":
        """Return the source that is a topology file."""
        return cls(kind=SourceKind.TOPOLOGY, path=str(file.absolute()))

    @classmethod
    def snapshot(cls, path: Path) -> "SourceSpec":
        """Return the source that is a snapshot: a directory or one `.kps` file."""
        return cls(kind=SourceKind.SNAPSHOT, path=str(path.absolute()))

    @classmethod
    def dumps(cls, folder: Path) -> "SourceSpec":
        """Return the source that is a folder of raw dumps."""
        return cls(kind=SourceKind.DUMPS, path=str(folder.absolute()))


class Pair(Message):
    """One question as people ask it, a line of `--pairs`: names (`shop/web-1`, `svc/shop/cart:80`, …) or addresses.

    `dport` 0 takes the port from the name (a Service with a single port, `…:80`). `payload_bytes` and `df` are those of
    `model.endpoint.Question`; `sport` 0 is an ephemeral port.
    """

    src: str = Field(min_length=1, max_length=512)
    dst: str = Field(min_length=1, max_length=512)
    dport: int = Field(default=0, ge=0, le=65535)
    proto: Literal["tcp", "udp", "sctp", "icmp"] = "tcp"
    sport: int = Field(default=0, ge=0, le=65535)
    payload_bytes: int = Field(default=0, ge=0, le=1 << 24)
    df: bool = False
    family: Literal[0, 4, 6] = 0
    """Which of an object's addresses is meant: IPv4, IPv6, or (0) the first it has."""


class ResolveParams(Message):
    """Resolve: the source, and the blob that lists the pairs (JSON array of `Pair`)."""

    source: SourceSpec
    pairs: Digest


class Part(Message):
    """What one instance of collect brings home: a machine of a live source (`node/n1`), or ("") all of a recorded one."""

    source: SourceSpec
    machine: str = ""
    label: str


class Shard(Message):
    """Some consecutive pairs of the list: the blob, the first one's position, how many."""

    pairs: Digest
    start: int = Field(ge=0)
    count: int = Field(ge=1)
    label: str


class Resolved(Message):
    """What is to be collected, and how the questions are cut."""

    parts: tuple[Part, ...]
    shards: tuple[Shard, ...]


class CollectParams(Message):
    """Collect: one part."""

    part: Part


class Collected(Message):
    """The blob that holds what a part brought home, when it was taken (RFC 3339), how many namespaces could not be read."""

    dump: Digest
    taken_at: str = ""
    failed: int = 0


class AssembleParams(Message):
    """Assemble: the source, the blobs of all its parts, and when each was taken."""

    source: SourceSpec
    dumps: tuple[Digest, ...]
    taken_at: tuple[str, ...] = ()


class Assembled(Message):
    """The snapshot's blob and the names of the nodes in it."""

    state: Digest
    nodes: tuple[str, ...]


class SimulateParams(Message):
    """Simulate the plugin on one node of a state; `pairs` say which Services matter where there are very many."""

    state: Digest
    node: str
    pairs: Digest


class Suspected(Message):
    """The blob with a list of suspicions, and how many there are."""

    suspicions: Digest
    count: int = Field(ge=0)


class DiagnoseParams(Message):
    """Diagnose one shard of pairs on a state."""

    state: Digest
    shard: Shard


class Diagnosed(Message):
    """The blob with a list of diagnoses, in the shard's order."""

    diagnoses: Digest
    count: int = Field(ge=0)


class InfraParams(Message):
    """Assert what lies between the places that the diagnoses' packets crossed, and the Kubernetes objects."""

    state: Digest
    diagnoses: tuple[Digest, ...]


class ExplainParams(Message):
    """Explain one shard's diagnoses by the suspicions: those node by node, and those of infra."""

    state: Digest
    diagnoses: Digest
    simulated: tuple[Digest, ...]
    infra: Digest


class ReportParams(Message):
    """Report: explained diagnoses shard by shard, suspicions node by node, and those of infra."""

    state: Digest
    diagnoses: tuple[Digest, ...]
    simulated: tuple[Digest, ...]
    infra: Digest


class Reported(Message):
    """The answer: blobs of explained diagnoses in the order of the pairs, and the suspicions that concern none of them."""

    state: Digest
    diagnoses: tuple[Digest, ...]
    cluster: Digest


RESOLVE = StepSpec(
    name="skoop.resolve", params=ResolveParams, result=Resolved, summary="resolve endpoints, find what to collect"
)
COLLECT = StepSpec(
    name="skoop.collect", params=CollectParams, result=Collected, summary="collect the network namespaces of one node"
)
ASSEMBLE = StepSpec(
    name="skoop.assemble", params=AssembleParams, result=Assembled, summary="put what was collected into one snapshot"
)
SIMULATE_PLUGIN = StepSpec(
    name="skoop.simulate-plugin",
    params=SimulateParams,
    result=Suspected,
    summary="compare one node with what its plugin and kube-proxy promise",
)
DIAGNOSE = StepSpec(
    name="skoop.diagnose", params=DiagnoseParams, result=Diagnosed, summary="run the diagnostor on a shard of questions"
)
ASSERT_INFRA = StepSpec(
    name="skoop.assert-infra",
    params=InfraParams,
    result=Suspected,
    summary="check what lies between nodes, and the objects",
)
EXPLAIN = StepSpec(
    name="skoop.explain", params=ExplainParams, result=Diagnosed, summary="find the root causes of a shard's answers"
)
REPORT = StepSpec(name="skoop.report", params=ReportParams, result=Reported, summary="put the answer together")
