"""Runs worlds inside user-mode Linux, whose kernel has the devices that an ordinary one may lack, and compares with the simulator.

    python -m tests.kernel.devices.uml [--record] [WORLD …]

Needs Debian's packages user-mode-linux, kmod, iproute2 and iptables, and a C compiler where the processor has AMX (`xstate.c`). No
privileges: user-mode Linux is a process. The last line holds the figures; exit status 1 if anything differs. With `--record` the
records are kept as the files that `test_uml_records` reads.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from zstandard import ZstdCompressor

from tests.kernel.devices.comparing import differences
from tests.kernel.devices.performing import Record
from tests.kernel.devices.world import WORLDS

KERNEL, MODULES = "linux.uml", Path("/usr/lib/uml/modules")
REPOSITORY = Path(__file__).parents[3]
RECORDS = REPOSITORY / "tests" / "data" / "uml"
TIMEOUT_S = 900
"""For one world with its faults; an idle machine needs a minute or two."""
WANTED = (
    "8021q bridge br_netfilter veth vxlan geneve ipip sit ip_gre ip6_tunnel ip6_gre dummy macvlan ipvlan bonding vrf"
    " iptable_raw iptable_mangle iptable_nat iptable_filter ip6table_filter nf_conntrack_netlink tcp_diag udp_diag raw_diag"
)
"""Modules; what else is needed is loaded by /proc/sys/kernel/modprobe."""
INIT = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1 XTABLES_LOCKFILE=/run/xtables
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /var/tmp
echo {here}/modprobe > /proc/sys/kernel/modprobe
modprobe -a -d {here} {modules}
echo 2 > /proc/sys/net/core/fb_tunnels_only_for_init_net
ip link set lo up
cd {repository} && {python} -m tests.kernel.devices.in_uml {out} {worlds}
echo "ended $?"
halt -f -p || poweroff -f
"""


def boot(out: Path, worlds: list[str]) -> str:
    """Perform the worlds in user-mode Linux, into records in a folder; return what its console said.

    A kernel that does not come to its end is ended with all its processes; the records that it has written until then count.
    """
    with tempfile.TemporaryDirectory(prefix="uml-") as text:
        here = Path(text)
        (here / "lib").mkdir()
        (here / "lib" / "modules").symlink_to(MODULES)
        script = INIT.format(
            here=here, modules=WANTED, repository=REPOSITORY, python=sys.executable, out=out, worlds=" ".join(worlds)
        )
        program(here / "modprobe", f'#!/bin/sh\nexec /sbin/modprobe -d {here} "$@"\n')
        program(here / "init", script)
        environment = dict(os.environ)
        shim = _shim(here)
        if shim is not None:
            environment["LD_PRELOAD"] = str(shim)
        return run_kernel(
            [
                KERNEL,
                "mem=768M",
                "rootfstype=hostfs",
                "rootflags=/",
                "rw",
                f"init={here}/init",
                "con=null",
                "con0=null,fd:1",
                "quiet",
                f"uml_dir={here}",
            ],
            environment,
            TIMEOUT_S,
        )


def run_kernel(words: list[str], environment: dict[str, str], timeout_s: float) -> str:
    """Run a kernel as a process (and its children) to its end, or until the time is over; return what it printed."""
    with subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    ) as kernel:
        try:
            return kernel.communicate(timeout=timeout_s)[0]
        except subprocess.TimeoutExpired:
            os.killpg(kernel.pid, signal.SIGKILL)
            return f"{kernel.communicate()[0]}\nnot ended after {timeout_s} s"


def program(path: Path, text: str) -> None:
    """Write a script that can be run."""
    path.write_text(text)
    path.chmod(0o755)


def _shim(here: Path) -> Path | None:
    if "amx_tile" not in Path("/proc/cpuinfo").read_text():
        return None
    library = here / "xstate.so"
    source = Path(__file__).with_name("xstate.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def records(folder: Path) -> Iterator[tuple[str, Record]]:
    """Yield the records of a folder with their names."""
    for path in sorted(folder.glob("*.json")):
        yield path.stem, msgspec.json.decode(path.read_bytes(), type=Record)


def main() -> int:
    """Run, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("worlds", nargs="*", help=f"of {', '.join(path.stem for path in WORLDS)}")
    parser.add_argument("--record", action="store_true", help="keep the records for the tests")
    given = parser.parse_args()
    if shutil.which(KERNEL) is None:
        print("apt-get install user-mode-linux kmod")  # noqa: T201
        return 2
    started, wrong, tried, count = time.monotonic(), 0, 0, 0
    for world in given.worlds or [path.stem for path in WORLDS]:
        with tempfile.TemporaryDirectory(prefix="uml-records-") as text:
            console = boot(Path(text), [world])
            seen = judge(Path(text), RECORDS if given.record else None)
            if not seen.scenarios:
                print(f"{world}: {console}")  # noqa: T201
                wrong += 1
            print(f"{world}: {seen.scenarios} scenarios, {seen.verdicts} verdicts", flush=True)  # noqa: T201
            count, tried, wrong = count + seen.scenarios, tried + seen.verdicts, wrong + seen.mismatches
    seconds = time.monotonic() - started
    print(f"scenarios={count} verdicts={tried} mismatches={wrong} seconds={seconds:.0f}")  # noqa: T201
    return 1 if wrong or not count else 0


class Judged(NamedTuple):
    """How many records there were in a folder, how many tries in them, and what was wrong."""

    scenarios: int = 0
    verdicts: int = 0
    mismatches: int = 0


def judge(out: Path, kept: Path | None) -> Judged:
    """Compare the records of a folder with the simulator, print what differs, and keep the records in another folder."""
    wrong = tried = count = 0
    for failed in sorted(out.glob("*.err")):
        print(f"{failed.stem}: {failed.read_text().splitlines()[-1]}")  # noqa: T201
        wrong += 1
    for name, record in records(out):
        count, tried = count + 1, tried + len(record.tried)
        for line in differences(record):
            print(line)  # noqa: T201
            wrong += 1
        if kept is not None:
            keep(kept, name, record)
    return Judged(count, tried, wrong)


def keep(folder: Path, name: str, record: Record) -> None:
    """Write a record into the folder that the tests read."""
    folder.mkdir(parents=True, exist_ok=True)
    safe = "".join(one if one.isalnum() or one == "-" else "_" for one in name)
    (folder / f"{safe}.json.zst").write_bytes(ZstdCompressor(level=19).compress(msgspec.json.encode(record)))


if __name__ == "__main__":
    sys.exit(main())
