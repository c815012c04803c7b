"""The DAG `diagnose` on recorded clusters: the same answer from dumps and snapshot, however it is cut, and errors people can use."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tasks.skoop.collect.dumps import load_dumps
from tasks.skoop.context import Context, RunIdentity, Settings
from tasks.skoop.jobs import JOBS
from tasks.skoop.jobs.answers import Answers, Suspicions, pairs_json
from tasks.skoop.model.diagnosis import Diagnosis
from tasks.skoop.model.trace import View
from tasks.skoop.network import Network
from tasks.skoop.snapshot import load, save
from tasks.skoop.specs import Message, Pair, SourceSpec
from tests.recorded.recordings import BROKEN, unpack
from workflows.blobs import DirectoryBlobs, MemoryBlobs
from workflows.dags import DAGS
from workflows.dags.diagnose import DAG, DiagnoseRequest
from workflows.engines.local import LocalEngine
from workflows.errors import RunFailed
from workflows.runs import Event, RunState
from workflows.submit import Answer, diagnose, local_engine

CLIENT, SERVER, SERVICE = "10.244.1.4", "10.244.2.5", "10.96.10.1"
PAIRS = (
    Pair(src=CLIENT, dst="svc/shop/web"),
    Pair(src="host/ext", dst="node/n2", dport=30080),
    Pair(src=CLIENT, dst="shop/db", dport=5432),
    Pair(src="node/n3", dst="deploy/shop/web", dport=8080),
    Pair(src=CLIENT, dst="node/n2", proto="icmp"),
)


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cluster whose node n2 does not forward."""
    return unpack(BROKEN / "il-ipfwd-n2.tar.zst", tmp_path_factory.mktemp("recorded"))


def ask(source: SourceSpec, pairs: Sequence[Pair] = PAIRS, **settings: int) -> tuple[Answer, ...]:
    values = {name.replace("_", "."): value for name, value in settings.items()}
    return diagnose(source, pairs, settings=Settings.build(values)).answers


def test_answers_in_the_order_of_the_pairs_several_for_a_name_of_several(dumps: Path) -> None:
    answers = ask(SourceSpec.dumps(dumps))
    assert [PAIRS.index(answer.pair) for answer in answers] == [0, 1, 2, 3, 3, 3, 4]
    assert {answer.diagnosis.question.dst.name for answer in answers[3:6]} == {
        pod.key for pod in load_dumps(dumps).objects.pods if pod.name.startswith("web-")
    }


def test_what_fails_is_explained_and_what_works_is_not(dumps: Path) -> None:
    by_name = {answer.diagnosis.question.dst.name: answer.diagnosis for answer in ask(SourceSpec.dumps(dumps))}
    broken = next(
        found
        for found in by_name.values()
        if found.question.dst.ip.startswith("10.244.2.") and found.question.dst.port == 8080
    )
    assert broken.client_sees == {View.TIMEOUT: 1.0}
    assert [one.code for one in broken.root_causes[0].suspicions] == ["KP-SYSCTL-001"]
    assert broken.root_causes[0].turns_to == {View.CONNECTED: 1.0}
    assert broken.suspicions[0].confirmed
    (n2,) = (node for node in broken.path.nodes if node.id == "node/n2")
    assert "KP-SYSCTL-001" in {one.code for one in n2.suspicions}
    works = next(found for found in by_name.values() if found.client_sees == {View.CONNECTED: 1.0})
    assert works.root_causes == ()


def told(answers: Sequence[Answer]) -> list[Diagnosis]:
    return [answer.diagnosis for answer in answers]


def test_dumps_and_both_forms_of_a_snapshot_give_the_same(dumps: Path, tmp_path: Path) -> None:
    state = load_dumps(dumps)
    save(state, tmp_path / "one.kps")
    save(state, tmp_path / "folder")
    from_dumps = diagnose(SourceSpec.dumps(dumps), PAIRS)
    for path in (tmp_path / "one.kps", tmp_path / "folder"):
        from_snapshot = diagnose(SourceSpec.snapshot(path), PAIRS)
        assert from_snapshot.answers == from_dumps.answers
        assert from_snapshot.state == from_dumps.state


@pytest.mark.parametrize("shard", [1, 2, 100])
def test_however_the_questions_are_cut(dumps: Path, shard: int) -> None:
    assert ask(SourceSpec.dumps(dumps), diagnose_shard=shard) == ask(SourceSpec.dumps(dumps))


def test_what_concerns_no_question_is_told_once_for_the_cluster(dumps: Path) -> None:
    result = diagnose(SourceSpec.dumps(dumps), PAIRS[:1])
    everything = {(one.code, one.subject) for one in Network.build(load_dumps(dumps)).suspicions()}
    of_cluster = {(one.code, one.subject) for one in result.cluster_suspicions}
    of_answer = {(one.code, one.subject) for one in result.answers[0].diagnosis.suspicions}
    assert everything <= of_cluster | of_answer
    assert not of_cluster & of_answer
    assert result.answers[0].diagnosis.cluster_suspicions == ()


def test_the_state_can_be_taken_out_of_the_blob_store(dumps: Path, tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path / "blobs")
    with LocalEngine(JOBS, context=Context(blobs=blobs)) as engine:
        result = diagnose(SourceSpec.dumps(dumps), PAIRS[:1], engine=engine)
    (tmp_path / "out.kps").write_bytes(blobs.get(result.state))
    assert load(tmp_path / "out.kps") == load_dumps(dumps)


def test_events_name_nodes_and_questions(dumps: Path) -> None:
    events: list[Event] = []
    diagnose(SourceSpec.dumps(dumps), PAIRS, on_event=events.append, settings=Settings.build({"diagnose.shard": 3}))
    labels = {(step.step, step.label) for event in events for step in event.change.steps}
    assert {
        ("collect", "dumps"),
        ("simulate-plugin", "n1"),
        ("diagnose", "1-3"),
        ("explain", "4-5"),
        ("report", ""),
    } <= labels
    assert events[-1].state is RunState.DONE


def run_steps(source: SourceSpec, context: Context) -> dict[str, Message]:
    """Run every step twice, one after the other in the order of the DAG, each time in a process that remembers nothing."""
    pairs = context.blobs.put(pairs_json(PAIRS))
    results: dict[str, Message] = {}

    def step(name: str, **params: object) -> Message:
        spec = JOBS[name].spec
        once, again = (
            JOBS[name].run(spec.params(**params), Context(blobs=context.blobs, run=RunIdentity(run_id=str(number))))
            for number in range(2)
        )
        assert once == again, f"{name} gives something else when run again"
        results[name] = once
        return once

    resolved = step("skoop.resolve", source=source, pairs=pairs)
    collected = step("skoop.collect", part=resolved.parts[0])
    state = step("skoop.assemble", source=source, dumps=(collected.dump,)).state
    simulated = step("skoop.simulate-plugin", state=state, node="n2", pairs=pairs)
    diagnosed = step("skoop.diagnose", state=state, shard=resolved.shards[0])
    infra = step("skoop.assert-infra", state=state, diagnoses=(diagnosed.diagnoses,))
    common = {"state": state, "simulated": (simulated.suspicions,), "infra": infra.suspicions}
    explained = step("skoop.explain", diagnoses=diagnosed.diagnoses, **common)
    step("skoop.report", diagnoses=(explained.diagnoses,), **common)
    return results


def test_every_step_run_twice_leaves_the_same_blobs(dumps: Path) -> None:
    context = Context(blobs=MemoryBlobs())
    results = run_steps(SourceSpec.dumps(dumps), context)
    assert results.keys() == JOBS.keys()
    answers = context.get(results["skoop.report"].diagnoses[0], Answers)
    assert [one.pair for one in answers.items] == [0, 1, 2, 3, 3, 3, 4]
    assert context.get(results["skoop.simulate-plugin"].suspicions, Suspicions).items[0].code == "KP-SYSCTL-001"


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        pytest.param(
            [Pair(src="shop/nobody", dst=SERVICE, dport=80)], "^nothing here is called 'shop/nobody'", id="unknown name"
        ),
        pytest.param([Pair(src="shop/web", dst=SERVICE, dport=80)], "^'shop/web' may be any of", id="two pods"),
        pytest.param([Pair(src=CLIENT, dst=SERVER)], "^port of '10.244.2.5': tcp needs one", id="no port"),
        pytest.param([Pair(src=CLIENT, dst=SERVER, dport=80, family=6)], "IPv6", id="no such family"),
        pytest.param(
            [*PAIRS, Pair(src=CLIENT, dst="svc/shop/nothing")],
            r"^question 6 \(10.244.1.4 to svc/shop/nothing\): nothing here is called",
            id="one of several",
        ),
    ],
)
def test_a_question_that_cannot_be_asked(dumps: Path, pairs: list[Pair], message: str) -> None:
    with pytest.raises(RunFailed, match=message) as caught:
        diagnose(SourceSpec.dumps(dumps), pairs)
    assert (caught.value.exit_status, caught.value.step) == (2, "resolve")


@pytest.mark.parametrize("kind", ["dumps", "snapshot", "topology"])
def test_a_source_that_is_not_there(tmp_path: Path, kind: str) -> None:
    source = SourceSpec(kind=kind, path=str(tmp_path / "nothing"))
    with pytest.raises(RunFailed, match="nothing") as caught:
        diagnose(source, PAIRS)
    assert caught.value.exit_status == 2
    assert "bug" not in str(caught.value)


def test_an_error_in_the_watcher_cancels_the_run(dumps: Path) -> None:
    class Enough(Exception):
        pass

    def watch(event: Event) -> None:
        if event.change.steps and event.change.steps[0].step == "collect":
            raise Enough

    with local_engine() as engine:
        with pytest.raises(Enough):
            diagnose(SourceSpec.dumps(dumps), PAIRS, engine=engine, on_event=watch)
        request = DiagnoseRequest(source=SourceSpec.dumps(dumps), pairs=engine.context.blobs.put(pairs_json(PAIRS)))
        run_id = engine.submit(DAG, request)
        assert [event.state for event in engine.watch(run_id)][-1] is RunState.DONE


def test_a_very_large_cluster_compares_only_the_services_asked_about(
    dumps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.skoop.network.MANY_SERVICES", 3)
    result = diagnose(SourceSpec.dumps(dumps), PAIRS[:1])
    assert result.answers == diagnose(SourceSpec.dumps(dumps), PAIRS[:1]).answers


def test_dags_are_named() -> None:
    assert DAGS == {"diagnose": DAG}
