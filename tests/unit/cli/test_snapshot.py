import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kubectl_probe.exits import ExitStatus
from tests.architecture.tree import ROOT
from tests.unit.cli.command import is_clean, run

Capture = pytest.CaptureFixture[str]


def test_show_tells_what_is_in_it(capfd: Capture, snapshot: Path) -> None:
    done = run(capfd, "snapshot", "show", snapshot)
    assert done.status == 0
    assert "18 network namespaces" in done.out
    assert "node/n1" in done.out


def test_show_as_json(capfd: Capture, snapshot: Path) -> None:
    shown = json.loads(run(capfd, "snapshot", "show", snapshot, "-o", "json").out)
    assert shown["objects"]["nodes"] == 3


def test_collect_from_dumps_makes_the_snapshot_that_is_bundled(
    capfd: Capture, dumps: Path, snapshot: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made.kps"
    done = run(capfd, "collect", "--dumps", dumps, "-o", made)
    assert done.status == 0
    assert "18 network namespaces" in done.out
    compared = run(capfd, "snapshot", "diff", snapshot, made)
    assert (compared.status, compared.out) == (0, "the same\n")


def test_diff_names_what_differs_and_exits_with_1(capfd: Capture, dumps: Path, snapshot: Path, tmp_path: Path) -> None:
    changed = tmp_path / "dumps"
    shutil.copytree(dumps, changed)
    rules = changed / "nodes" / "n1" / "iptables-save-c.legacy.txt"
    rules.write_text(rules.read_text().replace(":FORWARD ACCEPT", ":FORWARD DROP"))
    run(capfd, "collect", "--dumps", changed, "-o", tmp_path / "changed.kps")
    done = run(capfd, "snapshot", "diff", snapshot, tmp_path / "changed.kps")
    assert done.status == ExitStatus.PROBLEM_FOUND
    assert done.out.splitlines()[0] == "node/n1"
    assert "changed  iptables legacy ip4" in done.out
    assert "FORWARD" in done.out
    assert json.loads(run(capfd, "snapshot", "diff", snapshot, tmp_path / "changed.kps", "-o", "json").out)["changed"]


def test_a_damaged_snapshot_is_told(capfd: Capture, snapshot: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.kps"
    cut.write_bytes(snapshot.read_bytes()[: snapshot.stat().st_size // 2])
    done = run(capfd, "snapshot", "show", cut)
    assert done.status == ExitStatus.WRONG_COMMAND
    assert "cut.kps" in done.err
    assert is_clean(done)


def test_a_place_that_is_not_there_is_told(capfd: Capture, dumps: Path) -> None:
    done = run(capfd, "collect", "--dumps", dumps, "-o", "/proc/nowhere/x.kps")
    assert done.status == ExitStatus.WRONG_COMMAND
    assert "/proc/nowhere" in done.err
    assert is_clean(done)


def full_disk(folder: Path) -> list[str]:
    """Words before a command that fill its disk: a tiny file system for root, a limit on file sizes for others."""
    if os.geteuid() == 0:
        return [
            "unshare",
            "-m",
            "sh",
            "-c",
            f'mount -t tmpfs -o size=8k none {folder} && "$@"; s=$?; ls -A {folder}; exit $s',
            "-",
        ]
    return ["prlimit", "--fsize=2000"]


def test_a_full_disk_is_told_and_leaves_nothing(dumps: Path, tmp_path: Path) -> None:
    words = [
        *full_disk(tmp_path),
        sys.executable,
        "-m",
        "kubectl_probe",
        "collect",
        "--dumps",
        dumps,
        "-o",
        tmp_path / "x.kps",
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == ExitStatus.NOT_DONE
    assert "x.kps" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_truncated_dumps_are_told_with_file_and_line(capfd: Capture, dumps: Path, tmp_path: Path) -> None:
    cut = tmp_path / "dumps"
    shutil.copytree(dumps, cut)
    links = cut / "nodes" / "n1" / "ip-link-d.json"
    links = links if links.exists() else cut / "nodes" / "n1" / "ip-link.json"
    links.write_bytes(links.read_bytes()[:500])
    done = run(capfd, "collect", "--dumps", cut, "-o", tmp_path / "x.kps")
    assert done.status == ExitStatus.WRONG_COMMAND
    assert links.name in done.err
    assert is_clean(done)
    assert not (tmp_path / "x.kps").exists()
