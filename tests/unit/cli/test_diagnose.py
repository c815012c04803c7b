"""`diagnose` and `submit diagnose` on a recorded cluster, and every way in which the question or the source can be wrong."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kubectl_probe.exits import ExitStatus
from tasks.skoop.report.document import schema
from tests.architecture.tree import ROOT
from tests.unit.cli.command import finish, is_clean, run, start

Capture = pytest.CaptureFixture[str]
BROKEN_CLIENT, HEALTHY_CLIENT = "shop/client-74cdc48d-9nk66", "shop/client-74cdc48d-t75qz"
"""Pods on the node whose tunnel lacks an entry, and on another one."""
WEB = "svc/shop/web:80"


def documents(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("source", ["--snapshot", "--dumps"])
def test_a_problem_is_found(capfd: Capture, snapshot: Path, dumps: Path, source: str) -> None:
    done = run(
        capfd, "diagnose", source, snapshot if source == "--snapshot" else dumps, "--from", BROKEN_CLIENT, "--to", WEB
    )
    assert done.status == ExitStatus.PROBLEM_FOUND
    assert done.out.startswith(f"PARTLY: {BROKEN_CLIENT}")
    assert "9a:7c:10:24:40:01" in done.out
    assert "bridge fdb" in done.out
    assert done.err == ""


def test_nothing_is_wrong(capfd: Capture, snapshot: Path) -> None:
    done = run(
        capfd, "diagnose", "--snapshot", snapshot, "--from", HEALTHY_CLIENT, "--to", "node/n2", "--dport", "10250"
    )
    document = documents(run(capfd, "diagnose", "--snapshot", snapshot, "--from", BROKEN_CLIENT, "--to", "10.244.3.1", "--protocol", "icmp", "-o", "json").out)[0]  # fmt: skip
    assert document["client_sees"] == {"connected": 1.0}
    assert done.status in (ExitStatus.NOTHING_WRONG, ExitStatus.PROBLEM_FOUND)


def test_the_document_keeps_the_published_schema(capfd: Capture, snapshot: Path) -> None:
    done = run(capfd, "diagnose", "--snapshot", snapshot, "--from", BROKEN_CLIENT, "--to", WEB, "-o", "json")
    (document,) = documents(done.out)
    jsonschema.validate(document, schema())
    jsonschema.validate(document, json.loads((ROOT / "docs" / "diagnosis.schema.json").read_text()))
    assert document["client_sees"] == {"connected": pytest.approx(2 / 3), "timeout": pytest.approx(1 / 3)}
    lost = next(outcome for outcome in document["outcomes"] if outcome["client_sees"] == "timeout")
    assert lost["forward"]["place"]["netns"] == "node/n3"
    assert document["nodes"] and document["links"]


def test_the_cause_is_confirmed_and_says_what_to_type(capfd: Capture, snapshot: Path) -> None:
    (document,) = documents(
        run(capfd, "diagnose", "--snapshot", snapshot, "--from", BROKEN_CLIENT, "--to", WEB, "-o", "json").out
    )
    cause = document["root_causes"][0]
    assert [one["code"] for one in cause["suspicions"]] == ["KP-VXLAN-008"]
    assert all(one["confirmed"] for one in cause["suspicions"])
    assert cause["turns_to"] == {"connected": 1.0}
    (command,) = cause["suspicions"][0]["remedy"]["commands"]
    assert command["host"] == "n3"
    assert command["command"].startswith("bridge fdb")


@pytest.mark.parametrize("depth", ["minimal", "summary", "detailed"])
def test_how_much_is_told(capfd: Capture, snapshot: Path, depth: str) -> None:
    done = run(capfd, "diagnose", "--snapshot", snapshot, "--from", BROKEN_CLIENT, "--to", WEB, "--detail", depth)
    assert ("jump to KUBE-SERVICES" in done.out) == (depth == "detailed")
    assert ("dnat to 10.244.1.5:8080" in done.out) == (depth != "minimal")


def test_family_picks_the_addresses(capfd: Capture, snapshot: Path) -> None:
    done = run(capfd, "diagnose", "--snapshot", snapshot, "--from", BROKEN_CLIENT, "--to", WEB, "--family", "6")
    assert done.status == ExitStatus.WRONG_COMMAND
    assert "IPv6" in done.err
    assert is_clean(done)


QUESTIONS = (
    {"src": BROKEN_CLIENT, "dst": "svc/shop/web", "dport": 80, "proto": "tcp"},
    {"src": "10.244.3.2", "dst": "10.244.3.1", "proto": "ICMP", "dport": None},
    {"src": "node/n1", "dst": "svc/shop/orphan:80", "note": "nobody is behind it"},
)


def test_many_questions_are_answered_in_order(capfd: Capture, snapshot: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps(question) for question in QUESTIONS) + "\n\n")
    done = run(capfd, "diagnose", "--snapshot", snapshot, "--pairs", file, "-o", "json")
    assert done.status == ExitStatus.PROBLEM_FOUND
    answers = documents(done.out)
    assert [answer["pair"]["src"] for answer in answers] == [question["src"] for question in QUESTIONS]
    assert [set(answer["client_sees"]) for answer in answers] == [{"connected", "timeout"}, {"connected"}, {"refused"}]
    for answer in answers:
        jsonschema.validate(answer, schema())
    assert done.err == f"{file}: these members were left aside: note\n"


def test_many_questions_as_text_are_a_line_each(capfd: Capture, snapshot: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps(question) for question in QUESTIONS))
    lines = run(capfd, "diagnose", "--snapshot", snapshot, "--pairs", file).out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["PARTLY", "WORKS", "FAILS"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("", "no question", id="empty"),
        pytest.param('{"src": "a", "dst": "b"}\n{"src": "a"', ":2:", id="cut off"),
        pytest.param("[1]", ":1:", id="no object"),
        pytest.param('{"src": "a"}', "dst", id="without destination"),
        pytest.param('{"src": "a", "dst": "b", "dport": "http"}', "dport", id="port is no number"),
        pytest.param('{"src": "a", "dst": "b", "proto": "pigeon"}', "proto", id="protocol"),
        pytest.param("\xff\xfe", ":1:", id="no text"),
    ],
)
def test_questions_that_are_none_are_told_with_their_line(
    capfd: Capture, snapshot: Path, tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_bytes(text.encode("latin-1"))
    done = run(capfd, "diagnose", "--snapshot", snapshot, "--pairs", file)
    assert done.status == ExitStatus.WRONG_COMMAND
    assert says in done.err
    assert is_clean(done)


@pytest.mark.parametrize(
    ("src", "dst", "says"),
    [
        pytest.param("shop/nobody", WEB, "shop/nobody", id="unknown name"),
        pytest.param("shop/client", WEB, BROKEN_CLIENT, id="ambiguous name lists the candidates"),
        pytest.param(BROKEN_CLIENT, "svc/shop/web:https", "https", id="unknown port name"),
        pytest.param(BROKEN_CLIENT, "10.244.1.5", "tcp needs one", id="no port"),
        pytest.param(BROKEN_CLIENT, "svc/nowhere/web:80", "nowhere", id="missing namespace"),
        pytest.param(BROKEN_CLIENT, "300.1.2.3", "300.1.2.3", id="no address"),
    ],
)
def test_a_name_that_cannot_be_meant_is_told(capfd: Capture, snapshot: Path, src: str, dst: str, says: str) -> None:
    done = run(capfd, "diagnose", "--snapshot", snapshot, "--from", src, "--to", dst)
    assert done.status == ExitStatus.WRONG_COMMAND
    assert says in done.err
    assert is_clean(done)
    assert done.out == ""


def cut_dump(dumps: Path, tmp_path: Path) -> list[str | Path]:
    changed = tmp_path / "dumps"
    shutil.copytree(dumps, changed)
    rules = changed / "nodes" / "n3" / "iptables-save-c.legacy.txt"
    rules.write_text(rules.read_text()[:3000])
    return ["--dumps", changed]


def newer_snapshot(snapshot: Path, tmp_path: Path) -> list[str | Path]:
    folder = tmp_path / "newer"
    folder.mkdir()
    subprocess.run(["tar", "--use-compress-program=zstd -d", "-xf", snapshot, "-C", folder], check=True, timeout=60)
    head = folder / "HEAD"
    content = json.loads(head.read_text())
    key = next(name for name, value in content.items() if isinstance(value, int))
    head.write_text(json.dumps({**content, key: 99}))
    return ["--snapshot", folder]


def cut_snapshot(snapshot: Path, tmp_path: Path) -> list[str | Path]:
    cut = tmp_path / "cut.kps"
    cut.write_bytes(snapshot.read_bytes()[:-5000])
    return ["--snapshot", cut]


def empty_folder(_: Path, tmp_path: Path) -> list[str | Path]:
    return ["--dumps", tmp_path]


def topology_of_nothing(_: Path, tmp_path: Path) -> list[str | Path]:
    file = tmp_path / "topology.yaml"
    file.write_text("version: 1\nname: x\nnodes: {n1: {netns: /run/netns/this-is-not-there}}\n")
    return ["--topology", file]


def topology_misspelt(_: Path, tmp_path: Path) -> list[str | Path]:
    file = tmp_path / "topology.yaml"
    file.write_text("version: 1\nname: x\nknodes: {}\n")
    return ["--topology", file]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(cut_dump, "iptables-save-c.legacy.txt", id="truncated dump"),
        pytest.param(newer_snapshot, "99", id="snapshot of a newer version"),
        pytest.param(cut_snapshot, "cut.kps", id="damaged snapshot"),
        pytest.param(empty_folder, "", id="no dumps"),
        pytest.param(topology_of_nothing, "this-is-not-there", id="missing network namespace"),
        pytest.param(topology_misspelt, "nodes", id="misspelt topology"),
    ],
)
def test_a_source_that_cannot_be_used_is_told(
    capfd: Capture,
    snapshot: Path,
    dumps: Path,
    tmp_path: Path,
    make: Callable[[Path, Path], list[str | Path]],
    says: str,
) -> None:
    words = make(dumps if make is cut_dump else snapshot, tmp_path)
    done = run(capfd, "diagnose", *words, "--from", BROKEN_CLIENT, "--to", WEB)
    assert done.status in (ExitStatus.WRONG_COMMAND, ExitStatus.NOT_DONE)
    assert says in done.err
    assert is_clean(done)
    assert done.out == ""
    as_json = run(capfd, "diagnose", *words, "--from", BROKEN_CLIENT, "--to", WEB, "-o", "json")
    assert json.loads(as_json.err)["error"]["exit_status"] == done.status


def test_submit_tells_each_step_and_gives_the_same_answer(capfd: Capture, snapshot: Path) -> None:
    question = ("--snapshot", snapshot, "--from", BROKEN_CLIENT, "--to", WEB, "-o", "json")
    submitted = run(capfd, "submit", "diagnose", "--wait", *question)
    assert submitted.status == ExitStatus.PROBLEM_FOUND
    for step in ("resolve", "collect", "assemble", "simulate-plugin", "diagnose", "assert-infra", "report"):
        assert f"✓ {step}" in submitted.err
    assert submitted.out == run(capfd, "diagnose", *question).out


def test_submit_names_the_step_that_failed(capfd: Capture, snapshot: Path) -> None:
    done = run(capfd, "submit", "diagnose", "--wait", "--snapshot", snapshot, "--from", "shop/nobody", "--to", WEB)
    assert done.status == ExitStatus.WRONG_COMMAND
    assert "✗ resolve" in done.err
    assert is_clean(done)


def test_a_real_process_answers_json_alone(snapshot: Path) -> None:
    begun = time.monotonic()
    done = finish(start("diagnose", "--snapshot", snapshot, "--from", BROKEN_CLIENT, "--to", WEB, "-o", "json"))
    assert done.status == ExitStatus.PROBLEM_FOUND
    assert len(documents(done.out)) == 1
    assert done.err == ""
    assert time.monotonic() - begun < 20


def test_interrupting_ends_at_once_and_cleanly(snapshot: Path, tmp_path: Path) -> None:
    import signal

    file = tmp_path / "questions.jsonl"
    file.write_text((json.dumps(QUESTIONS[0]) + "\n") * 20000)
    process = start("submit", "diagnose", "--wait", "--snapshot", snapshot, "--pairs", file)
    assert process.stderr is not None
    first = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert b"resolve" in first
    assert done.status == ExitStatus.INTERRUPTED
    assert "interrupted" in done.err
    assert is_clean(done)
