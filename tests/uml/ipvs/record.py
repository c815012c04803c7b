"""Boots user-mode Linux for the IPVS cases, and keeps what came out of it as small files.

    python -m tests.uml.ipvs.record --named            records tests/data/uml-ipvs/named.msgpack.zst anew
    python -m tests.uml.ipvs.record --seed S --count N  fresh random cases: compared, and thrown away

Needs linux.uml, its modules, kmod and ipvsadm (Debian: user-mode-linux, kmod, ipvsadm); no privilege.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec
import zstandard

from tasks.skoop.model.cluster import ClusterState

if TYPE_CHECKING:
    from lab.prober import Ask, Attempt

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests/data/uml-ipvs"
KERNEL = "linux.uml"
_WINDOW_LOG = 27


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one question: `views` with their counts; `pairs` are (namespace that served, source it saw)."""

    src: str
    dst: str
    dport: int
    protocol: str
    views: dict[str, int]
    pairs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, ask: "Ask", attempts: "Sequence[Attempt]") -> Self:
        """Return the row of a question's attempts."""
        pairs = {(attempt.server, attempt.seen_src) for attempt in attempts if attempt.server}
        return cls(
            src=ask.src,
            dst=ask.dst,
            dport=ask.dport,
            protocol=ask.protocol,
            views=dict(Counter(str(attempt.view) for attempt in attempts)),
            pairs=tuple(sorted(pairs)),
        )


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """One case: what was done, the collected state, and what the kernel made of each question."""

    name: str
    commands: tuple[str, ...]
    state: ClusterState
    rows: tuple[Row, ...]


def write(path: Path, recorded: Recorded) -> None:
    """Write one case."""
    path.write_bytes(msgspec.msgpack.encode(recorded))


def load(path: Path) -> list[Recorded]:
    """Return the cases of a file made by `pack`."""
    with path.open("rb") as packed:
        data = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG).stream_reader(packed).read()
    return msgspec.msgpack.decode(data, type=list[Recorded])


def thinned(cases: Sequence[Recorded], one_in: int = 8) -> list[Recorded]:
    """Return the cases with fewer rows: all of the first; of the others those that came out otherwise than in the first, those about
    addresses that the case is about, and one in so many of the rest.
    """
    usual = {(row.src, row.dst, row.dport, row.protocol): row for row in cases[0].rows}

    def kept(case: int, number: int, row: Row) -> bool:
        before = usual.get((row.src, row.dst, row.dport, row.protocol))
        same = before is not None and (before.views.keys(), before.pairs) == (row.views.keys(), row.pairs)
        told = any(row.dst in command for command in cases[case].commands)
        return not same or told or (number + case) % one_in == 0

    return [
        msgspec.structs.replace(one, rows=tuple(row for number, row in enumerate(one.rows) if kept(case, number, row)))
        if case
        else one
        for case, one in enumerate(cases)
    ]


def pack(cases: Iterable[Recorded], path: Path) -> None:
    """Write cases into one file; what they share is stored once (a long window finds it)."""
    settings = zstandard.ZstdCompressionParameters.from_level(19, window_log=_WINDOW_LOG, enable_ldm=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        zstandard.ZstdCompressor(compression_params=settings).compress(msgspec.msgpack.encode(list(cases)))
    )


def boot(
    arguments: Sequence[str], *, memory: str = "1G", timeout_s: float = 1800, into: str | None = None
) -> list[Recorded]:
    """Run the cases that the arguments name (`inside`) in user-mode Linux and return them. Raises RuntimeError.

    `into` is a folder to leave each case's file in as it is done (None: a temporary one).
    """
    if (kernel := shutil.which(KERNEL)) is None:
        raise RuntimeError(f"{KERNEL} is not installed (Debian: user-mode-linux)")
    with tempfile.TemporaryDirectory(prefix="kubeprobe-uml-") if into is None else nullcontext(into) as out:
        command = [
            kernel,
            f"mem={memory}",
            "rootfstype=hostfs",
            "rootflags=/",
            "ro",
            f"init={ROOT}/tests/uml/ipvs/init.sh",
        ]
        command += [
            "con=null",
            "con0=null,fd:1",
            "quiet",
            f"kp_root={ROOT}",
            f"kp_out={out}",
            f"kp_args={','.join(arguments)}",
        ]
        env = {"HOME": out, "TMPDIR": "/tmp", "PATH": os.environ.get("PATH", ""), **_large_registers(Path(out))}
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, timeout=timeout_s, check=False
        )
        status, log = Path(out, "status"), Path(out, "log")
        said = log.read_text(errors="replace") if log.exists() else done.stdout[-2000:] + done.stderr[-2000:]
        if not status.exists() or status.read_text().strip() != "0":
            raise RuntimeError(f"the run inside {KERNEL} failed:\n{said}")
        print(said, end="")
        return [
            msgspec.msgpack.decode(path.read_bytes(), type=Recorded) for path in sorted(Path(out).glob("*.msgpack"))
        ]


def _large_registers(folder: Path) -> dict[str, str]:
    """Return what makes the kernel run on CPUs with AMX (`tests/uml/xstate.c` says why); nothing without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None or "amx_tile" not in Path("/proc/cpuinfo").read_text():
        return {}
    library = folder / "xstate.so"
    source = ROOT / "tests/uml/xstate.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}


def main() -> int:
    """Record or compare, as the options say; 1 if anything was foretold wrong, 2 if there was no run."""
    from tests.uml.ipvs.comparing import compare

    parser = argparse.ArgumentParser(prog="tests.uml.ipvs.record")
    parser.add_argument("--named", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--part", default="0/1", help="only every N-th case from the K-th on")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--into", help="folder to leave each case's file in")
    parser.add_argument("--keep", default="", help="name of the file below tests/data/uml-ipvs to write")
    options = parser.parse_args()
    arguments = [f"--seed={options.seed}", f"--count={options.count}", f"--part={options.part}"]
    arguments += ["--named"] if options.named else []
    arguments += [f"--only={options.only.replace(' ', '-')}"] if options.only else []
    try:
        cases = boot(arguments, into=options.into)
    except RuntimeError as error:
        print(error)
        return 2
    if options.keep:
        pack(thinned(cases), DATA / f"{options.keep}.msgpack.zst")
    result = compare(cases)
    print(result.text())
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
