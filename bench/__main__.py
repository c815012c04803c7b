"""`python -m bench`: parse, store, load and question the recorded node with 10,000 services.

The last line holds the figures: parse_s (iptables-save text to typed rules), load_s (a stored snapshot to the same rules),
p50_ms and p99_ms (one pod to a ClusterIP, simulated), restore_ratio (parse_s over what `iptables-legacy-restore --test`
takes for the same text in the same run; `unknown` where that cannot be run), pair_ms and pair_ratio (one random pair of the
recorded small cluster, and that over what json.loads takes for a document of the same run).
"""

import sys
import tempfile
from pathlib import Path

from bench.pairs import diagnose_pairs
from bench.recorded import cluster, dump_text, with_tables
from bench.restore import restore_command, restore_seconds
from bench.simulate import simulate
from bench.timing import percentile, timed
from tasks.skoop.model.xtables import Backend, XTable
from tasks.skoop.parse.iptables import parse_iptables_save
from tasks.skoop.snapshot import load, save
from tasks.skoop.snapshot.bulk import without_gc

ROUNDS = 3
QUESTIONS = 300
PAIRS = 1000


def main() -> int:
    """Run everything and print the figures; returns the exit status."""
    text = dump_text()
    command = restore_command()
    parses: list[float] = []
    restores: list[float] = []
    tables: tuple[XTable, ...] = ()
    for _ in range(ROUNDS):
        tables = ()
        seconds, tables = timed(lambda: _parse(text))
        parses.append(seconds)
        taken = restore_seconds(command, text) if command else None
        if taken is not None:
            restores.append(taken)
    rules = sum(len(chain.rules) for table in tables for chain in table.chains)
    print(f"parse        {text.count(chr(10))} lines, {rules} rules: {_seconds(parses)}")
    print(
        f"restore      {_seconds(restores) if restores else 'not to be had here (root, iptables and util-linux needed)'}"
    )
    with tempfile.TemporaryDirectory(prefix="kubeprobe-bench-") as folder:
        state = with_tables(cluster(Path(folder)), tables)
        path = Path(folder) / "bench.kps"
        stored, _ = timed(lambda: save(state, path))
        print(f"save         {stored:.3f} s, {path.stat().st_size / 1e6:.1f} MB")
        loads = [timed(lambda: load(path))[0] for _ in range(ROUNDS)]
        print(f"load         {_seconds(loads)}")
        first, times = simulate(load(path), tables, QUESTIONS)
        pair, reading = diagnose_pairs(cluster(Path(folder)), PAIRS)
    p50, p99 = (percentile(times, share) * 1000 for share in (0.5, 0.99))
    print(f"simulate     first {first:.3f} s, then {len(times)} questions: {p50:.2f} ms at p50, {p99:.2f} ms at p99")
    print(f"pairs        {PAIRS} in a small cluster: {pair * 1000:.2f} ms each; json.loads: {reading * 1000:.2f} ms")
    ratio = f"{min(parses) / min(restores):.2f}" if restores else "unknown"
    print(
        f"parse_s={min(parses):.3f} load_s={min(loads):.3f} p50_ms={p50:.2f} p99_ms={p99:.2f} "
        f"pair_ms={pair * 1000:.2f} pair_ratio={pair / reading:.2f} restore_ratio={ratio}"
    )
    return 0


def _parse(text: str) -> tuple[XTable, ...]:
    """Read a dump as `load_dumps` does: with the cycle collector off, as nothing that is made here holds a cycle."""
    with without_gc():
        return parse_iptables_save(text, backend=Backend.LEGACY, family=4)


def _seconds(values: list[float]) -> str:
    return f"{min(values):.3f} s best of {', '.join(f'{value:.3f}' for value in values)}"


if __name__ == "__main__":
    sys.exit(main())
