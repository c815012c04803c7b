"""The DAG `diagnose`: from a source of state and a list of questions to answers.

resolve endpoints → collect netns per node → (assemble one snapshot) → simulate plugin per node; run diagnostor per shard of
questions → assert infra → explain per shard → report.
"""

from tasks.skoop.specs import (
    ASSEMBLE,
    ASSERT_INFRA,
    COLLECT,
    DIAGNOSE,
    EXPLAIN,
    REPORT,
    RESOLVE,
    SIMULATE_PLUGIN,
    Digest,
    Message,
    SourceSpec,
)
from workflows.dag import EACH, Dag, Retry, Step, gather, param, result


class DiagnoseRequest(Message):
    """What a run is asked: the source, and the blob that lists the pairs."""

    source: SourceSpec
    pairs: Digest


DAG = Dag(
    name="diagnose",
    summary="what happens to this traffic, and why",
    params=DiagnoseRequest,
    result="report",
    steps=(
        Step(name="resolve", spec=RESOLVE, bind={"source": param("source"), "pairs": param("pairs")}),
        Step(
            name="collect",
            spec=COLLECT,
            each=result("resolve", "parts"),
            bind={"part": EACH},
            retry=Retry(attempts=2, delay_s=1),
            time_limit_s=180,
        ),
        Step(
            name="assemble",
            spec=ASSEMBLE,
            bind={
                "source": param("source"),
                "dumps": gather("collect", "dump"),
                "taken_at": gather("collect", "taken_at"),
            },
        ),
        Step(
            name="simulate-plugin",
            spec=SIMULATE_PLUGIN,
            each=result("assemble", "nodes"),
            bind={"state": result("assemble", "state"), "node": EACH, "pairs": param("pairs")},
            queue="cpu",
        ),
        Step(
            name="diagnose",
            spec=DIAGNOSE,
            each=result("resolve", "shards"),
            bind={"state": result("assemble", "state"), "shard": EACH},
            queue="cpu",
            time_limit_s=900,
        ),
        Step(
            name="assert-infra",
            spec=ASSERT_INFRA,
            bind={"state": result("assemble", "state"), "diagnoses": gather("diagnose", "diagnoses")},
            queue="cpu",
        ),
        Step(
            name="explain",
            spec=EXPLAIN,
            bind={
                "state": result("assemble", "state"),
                "diagnoses": result("diagnose", "diagnoses"),
                "simulated": gather("simulate-plugin", "suspicions"),
                "infra": result("assert-infra", "suspicions"),
            },
            queue="cpu",
            time_limit_s=900,
        ),
        Step(
            name="report",
            spec=REPORT,
            bind={
                "state": result("assemble", "state"),
                "diagnoses": gather("explain", "diagnoses"),
                "simulated": gather("simulate-plugin", "suspicions"),
                "infra": result("assert-infra", "suspicions"),
            },
            queue="cpu",
        ),
    ),
)
