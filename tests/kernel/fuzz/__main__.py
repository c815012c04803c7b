"""`python -m tests.kernel.fuzz -n 1000 --seed 7`: the campaign, on several processes, and its table. Status 1 on a mismatch.

Every process has labs of its own; which scenario has which number hangs on the seed alone.
"""

import argparse
import multiprocessing
import os
import secrets
import sys
import time
import traceback
from multiprocessing.queues import Queue
from pathlib import Path

from tests.kernel.fuzz.campaign import Campaign, Tally, write
from tests.kernel.fuzz.generator import BLOCK


def main() -> int:
    """Play a campaign; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernel.fuzz", description=__doc__)
    parser.add_argument("-n", type=int, default=1000, help="scenarios (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first scenario (default: 0)")
    parser.add_argument("--seed", type=int, default=None, help="seed (default: a fresh one)")
    parser.add_argument("--only", type=int, action="append", default=None, help="play only this scenario")
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1), help="processes")
    parser.add_argument("--seconds", type=float, default=0, help="stop beginning new scenarios after this time")
    parser.add_argument("--reports", type=Path, default=Path(".state/fuzz"), help="folder for mismatches")
    given = parser.parse_args()
    if os.geteuid():
        parser.error("needs root: network namespaces and raw sockets")
    seed = secrets.randbelow(1_000_000) if given.seed is None else given.seed
    say(f"seed={seed}")
    started = time.monotonic()
    tally = play(seed, _numbers(given), jobs=given.jobs, seconds=given.seconds)
    report(tally)
    for mismatch in tally.mismatches:
        say(f"--- {write(mismatch, given.reports)}\n{mismatch.text()}")
    say(last_line(tally, seed, time.monotonic() - started))
    return 1 if tally.mismatches else 0


def _numbers(given: argparse.Namespace) -> list[int]:
    return given.only or list(range(given.first, given.first + given.n))


def play(seed: int, numbers: list[int], *, jobs: int, seconds: float = 0) -> Tally:
    """Play scenarios on several processes; return what they counted together."""
    blocks: dict[int, list[int]] = {}
    for number in numbers:
        blocks.setdefault(number // BLOCK, []).append(number)
    context = multiprocessing.get_context("fork")
    work: Queue[list[int] | None] = context.Queue()
    done: Queue[Tally | str] = context.Queue()
    for block in blocks.values():
        size = max(10, min(len(block), len(numbers) // jobs + 1))
        for start in range(0, len(block), size):
            work.put(block[start : start + size])
    jobs = min(jobs, len(numbers))
    until = time.monotonic() + seconds if seconds else float("inf")
    processes = [context.Process(target=_work, args=(seed, work, done, until)) for _ in range(jobs)]
    for process in processes:
        work.put(None)
        process.start()
    whole = Tally()
    for _ in processes:
        said = done.get()
        if isinstance(said, str):
            raise SystemExit(said)
        whole.add(said)
    for process in processes:
        process.join()
    return whole


def _work(seed: int, work: "Queue[list[int] | None]", done: "Queue[Tally | str]", until: float) -> None:
    campaign = Campaign(seed)
    try:
        while (numbers := work.get()) is not None:
            for number in numbers:
                if time.monotonic() > until:
                    break
                for mismatch in campaign.play(number):
                    sys.stderr.write(mismatch.text() + "\n")
        done.put(campaign.tally)
    except BaseException:
        done.put(traceback.format_exc())
        raise
    finally:
        campaign.close()


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def report(tally: Tally) -> None:
    """Print which features were exercised, what could not be done and what is unknown."""
    for title, counts in (
        ("changes", tally.changed),
        ("matches and targets met by packets", tally.met),
        ("what clients saw", tally.views),
        ("refused by the kernel or its tools", tally.refused),
        ("unknown, for want of", tally.gaps),
    ):
        say(f"\n{title}")
        for name, count in counts.most_common(80):
            say(f"  {count:8d}  {name}")
    if tally.elsewhere:
        say("\nended elsewhere than foretold")
        for line in tally.elsewhere[:40]:
            say(f"  {line}")
    say(f"\nlate or disturbed verdicts, right when tried alone: {tally.late}; labs rebuilt: {tally.rebuilt}")


def last_line(tally: Tally, seed: int, seconds: float) -> str:
    """Return the line of figures."""
    place = f"{100 * tally.same_places / tally.places:.1f}%" if tally.places else "-"
    return (
        f"scenarios={tally.scenarios} verdicts={tally.verdicts} mismatches={len(tally.mismatches)} place={place} "
        f"unknown={100 * tally.unknown / max(1, tally.verdicts):.2f}% rate={tally.scenarios / seconds:.1f}/s seed={seed}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
