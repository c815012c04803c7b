"""`lab …` and `demo`: against real labs where this machine can run one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubectl_probe.exits import ExitStatus
from lab.api import available
from tests.unit.cli.command import finish, is_clean, run, start

Capture = pytest.CaptureFixture[str]
REASON = available()
needs_lab = pytest.mark.skipif(REASON is not None, reason=f"no lab can run here: {REASON}")


@pytest.fixture(autouse=True)
def own_labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep this test's labs apart from everybody's."""
    folder = tmp_path / "labs"
    monkeypatch.setenv("KUBEPROBE_LAB_DIR", str(folder))
    return folder


@pytest.fixture
def lab(capfd: Capture) -> Iterator[Path]:
    """A running lab of two nodes; its topology file."""
    from lab import api

    assert run(capfd, "lab", "up", "flannel-vxlan", "--nodes", "2", "--family", "4").status == 0
    try:
        yield api.status("default").topology
    finally:
        if api.running():
            api.down("default")


@needs_lab
@pytest.mark.root
def test_a_lab_is_broken_diagnosed_tried_and_mended(capfd: Capture, lab: Path) -> None:
    question = ("--from", "shop/client-1", "--to", "shop/web-2", "--dport", "8080")
    assert run(capfd, "diagnose", "--topology", lab, *question).status == ExitStatus.NOTHING_WRONG
    assert run(capfd, "lab", "probe", *question).status == ExitStatus.NOTHING_WRONG

    broken = run(capfd, "lab", "break", "fdb-missing", "--on", "n1")
    assert broken.out.startswith("broken: F34 on n1\n")
    assert "bridge fdb del" in broken.out
    assert "broken: F34 on n1" in run(capfd, "lab", "status").out
    diagnosed = run(capfd, "diagnose", "--topology", lab, *question)
    assert diagnosed.status == ExitStatus.PROBLEM_FOUND
    assert "KP-VXLAN-008" in diagnosed.out
    tried = run(capfd, "lab", "probe", *question)
    assert tried.status == ExitStatus.PROBLEM_FOUND
    assert "timeout" in tried.out
    assert "node/n1" in tried.out

    assert run(capfd, "lab", "mend").out == "mended: F34\n"
    assert run(capfd, "lab", "mend").out == "nothing was broken\n"
    assert run(capfd, "diagnose", "--topology", lab, *question).status == ExitStatus.NOTHING_WRONG
    assert run(capfd, "lab", "down").status == 0
    assert "no lab is running" in run(capfd, "lab", "status").out


@needs_lab
@pytest.mark.root
def test_what_is_collected_from_a_lab_can_be_diagnosed_when_it_is_gone(
    capfd: Capture, lab: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "lab.kps"
    assert run(capfd, "collect", "--topology", lab, "-o", kept).status == 0
    run(capfd, "lab", "down")
    gone = run(capfd, "diagnose", "--topology", lab, "--from", "shop/client-1", "--to", "svc/shop/web:80")
    assert gone.status == ExitStatus.WRONG_COMMAND
    assert is_clean(gone)
    assert run(capfd, "diagnose", "--snapshot", kept, "--from", "shop/client-1", "--to", "svc/shop/web:80").status == 0


@needs_lab
@pytest.mark.root
def test_a_lab_tells_itself_as_json(capfd: Capture, lab: Path) -> None:
    (info,) = json.loads(run(capfd, "lab", "status", "-o", "json").out)
    assert info["topology"] == str(lab)
    (truth,) = run(
        capfd, "lab", "probe", "--from", "shop/client-1", "--to", "svc/shop/web:80", "-o", "json"
    ).out.splitlines()
    assert json.loads(truth)["attempt"]["view"] == "connected"


def test_faults_are_listed(capfd: Capture) -> None:
    assert "F34   fdb-missing " in run(capfd, "lab", "faults").out
    assert "fdb-missing" not in run(capfd, "lab", "faults", "bridge").out
    assert all(fault["title"] for fault in json.loads(run(capfd, "lab", "faults", "-o", "json").out))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(["lab", "down"], "no lab named", id="no lab"),
        pytest.param(["lab", "up", "weave"], "weave", id="unknown kind"),
        pytest.param(["lab", "up", "--backend", "ebpf"], "ebpf", id="unknown back end"),
        pytest.param(["lab", "up", "--nodes", "9"], "--nodes", id="too many nodes"),
        pytest.param(["lab", "faults", "weave"], "weave", id="faults of an unknown kind"),
        pytest.param(["lab", "break", "gremlins"], "gremlins", id="unknown fault"),
    ],
)
def test_what_a_lab_does_not_have_is_told(capfd: Capture, words: list[str], says: str) -> None:
    done = run(capfd, *words)
    assert done.status in (ExitStatus.WRONG_COMMAND, ExitStatus.NOT_DONE)
    assert says in done.err
    assert is_clean(done)


@needs_lab
@pytest.mark.root
def test_the_demo_shows_a_real_cluster_and_leaves_nothing(own_labs: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = finish(start("demo", environment={"TMPDIR": str(temporary)}))
    assert done.status == 0, done.err
    assert "this is a real cluster in network namespaces" in done.out
    words = (
        "PARTLY: shop/client-1",
        "Cause (confirmed)",
        "KP-VXLAN-008",
        "bridge fdb",
        "Tried for real",
        "WORKS: shop/client-1",
    )
    for word in words:
        assert word in done.out, word
    assert list(temporary.iterdir()) == []
    assert not own_labs.exists()


def test_the_demo_falls_back_on_a_recording_and_says_so(own_labs: Path) -> None:
    done = finish(start("demo", "--recorded", environment={"KUBEPROBE_LAB_DIR": str(own_labs)}))
    assert done.status == 0, done.err
    assert "bundled snapshot of a real cluster" in done.out
    for word in ("PARTLY: shop/client-", "Cause (confirmed)", "KP-VXLAN-008", "bridge fdb"):
        assert word in done.out, word
    assert not own_labs.exists()
