"""`kubectl-probe demo`: what this program is for, shown on a network that is really broken.

Where the machine may make network namespaces: a cluster is built in them, broken, diagnosed, tried for real, mended, and
diagnosed again. Elsewhere the bundled snapshot of a real broken cluster is diagnosed. Which one it is, is said.
"""

import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kubectl_probe.errors import DemoFailed
from kubectl_probe.exits import ExitStatus
from kubectl_probe.output import say, text_style

if TYPE_CHECKING:
    from lab.api import LabInfo
    from lab.prober import Attempt
    from tasks.skoop.model.diagnosis import Diagnosis
    from tasks.skoop.specs import SourceSpec

BUNDLED = "fdb-missing.kps"
BUNDLED_FROM, BUNDLED_TO = "shop/client-74cdc48d-9nk66", "svc/shop/web:80"
LAB_KIND = "flannel-vxlan"
LAB_FAULT, LAB_FAULT_ON = "F34", "n1"  # a node does not know where its peer's tunnel ends
LAB_FROM, LAB_TO = "shop/client-1", "svc/shop/web:80"
TRIES = 30


def demo(
    recorded: Annotated[
        bool, typer.Option("--recorded", help="Use the bundled snapshot even where a lab is possible.")
    ] = False,
) -> int:
    """Build a cluster, break it, find out why, mend it; or, where that is not possible, diagnose a recorded one.

    The machine's own network is not touched. Exit status 0 if all of it went as it should.
    """
    from lab import api
    from lab.errors import LabFailed

    started = time.monotonic()
    reason = "asked for with --recorded" if recorded else api.available()
    if reason is None:
        try:
            _show_lab()
        except LabFailed as error:
            reason = f"it was tried, but {error}"
    if reason is not None:
        _show_recorded(reason)
    say(
        f"\nThat took {time.monotonic() - started:.0f} s. Next: kubectl-probe diagnose --help, kubectl-probe lab --help"
    )
    return ExitStatus.NOTHING_WRONG


def _show_recorded(reason: str) -> None:
    say(f"No lab here ({reason}).")
    say(
        "So this is the bundled snapshot of a real cluster, recorded while it was broken: 3 nodes, kube-proxy, flannel vxlan.\n"
    )
    with as_file(files("kubectl_probe") / "data" / BUNDLED) as file:
        from tasks.skoop.specs import SourceSpec

        diagnosis = _diagnose(SourceSpec.snapshot(file), BUNDLED_FROM, BUNDLED_TO)
    _print(diagnosis)
    _expect(_has_confirmed_cause(diagnosis), "diagnosed the recorded cluster", "no cause was confirmed")


def _show_lab() -> None:
    from lab import api

    say(f"This machine can run a lab, so this is a real cluster in network namespaces ({LAB_KIND}).\n")
    with _lab() as info:
        say(f"1. It is up: {info.nodes} nodes, {len(info.plan.pods)} pods, {len(info.plan.services)} services.")
        done = api.break_(info.name, LAB_FAULT, LAB_FAULT_ON)
        say(f"2. Now it is broken: on {done.on} somebody ran\n     " + "\n     ".join(done.did))
        say(f"3. {LAB_FROM} wants to reach {LAB_TO}. What will become of that, and why?\n")
        diagnosis = _diagnose_lab(info)
        _print(diagnosis)
        _expect(_has_confirmed_cause(diagnosis), "diagnosed the broken lab", "no cause was confirmed")
        say(f"\n4. Tried for real, {TRIES} times: {_tally(_try_for_real(info))}.")
        api.mend(info.name)
        mended = _diagnose_lab(info)
        from tasks.skoop.report.verdict import Judgement, headline, judge

        say(f"5. Mended, and diagnosed again: {headline(mended)}")
        _expect(judge(mended) is Judgement.WORKS, "diagnosed the mended lab", headline(mended))
        attempts = _try_for_real(info)
        say(f"   Tried for real, {TRIES} times: {_tally(attempts)}.")
        _expect(all(one.view == "connected" for one in attempts), "tried the mended lab", _tally(attempts))


@contextmanager
def _lab() -> "Iterator[LabInfo]":
    """Bring a lab of our own up, and down again whatever happens; what it keeps on disk is apart from other labs."""
    from lab import api

    with tempfile.TemporaryDirectory(prefix="kubeprobe-demo-") as folder:
        os.environ["KUBEPROBE_LAB_DIR"] = folder
        info = api.up(LAB_KIND, name="demo")
        try:
            yield info
        finally:
            api.down(info.name)


def _diagnose_lab(info: "LabInfo") -> "Diagnosis":
    from tasks.skoop.specs import SourceSpec

    return _diagnose(SourceSpec.topology(Path(info.topology)), LAB_FROM, LAB_TO)


def _diagnose(source: "SourceSpec", src: str, dst: str) -> "Diagnosis":
    from msgspec.structs import replace

    from kubectl_probe.progress import watcher
    from tasks.skoop.specs import Pair
    from workflows.submit import diagnose

    with watcher("diagnose") as watch:
        result = diagnose(source, (Pair(src=src, dst=dst),), on_event=watch, asked_by="kubectl-probe demo")
    return replace(result.answers[0].diagnosis, cluster_suspicions=result.cluster_suspicions)


def _print(diagnosis: "Diagnosis") -> None:
    from tasks.skoop.report.text import render

    say(render(diagnosis, text_style()), end="")


def _has_confirmed_cause(diagnosis: "Diagnosis") -> bool:
    return any(all(one.confirmed for one in cause.suspicions) for cause in diagnosis.root_causes)


def _try_for_real(info: "LabInfo") -> "list[Attempt]":
    from lab import api

    return api.attempt(info.name, [api.make_ask(info.plan, LAB_FROM, LAB_TO)] * TRIES)


def _tally(attempts: "list[Attempt]") -> str:
    return ", ".join(f"{view} {count}" for view, count in Counter(str(one.view) for one in attempts).most_common())


def _expect(shown: bool, step: str, problem: str) -> None:
    if not shown:
        raise DemoFailed(step, problem)
