"""Runs worlds inside user-mode Linux, whose kernel has the devices that an ordinary one may lack, and compares with the simulator.

    python -m tests.kernel.devices.uml [--record] [WORLD …]

Needs Debian's packages user-mode-linux, kmod, iproute2 and iptables, and a C compiler where the processor has AMX (`xstate.c`). No
privileges: user-mode Linux is a process. The last line holds the figures; exit status 1 if anything differs. With `--record` the
records are kept as the files that `test_uml_records` reads.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from zstandard import ZstdCompressor

from tests.kernel.devices.comparing import differences
from tests.kernel.devices.performing import Record
from tests.kernel.devices.world import WORLDS

KERNEL, MODULES = "linux.uml", Path("/usr/lib/uml/modules")
REPOSITORY = Path(__file__).parents[3]
RECORDS = REPOSITORY / "tests" / "data" / "uml"
TIMEOUT_S = 1800
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
    """Perform the worlds (all if none is named) in user-mode Linux, into records in a folder; return what its console said."""
    with tempfile.TemporaryDirectory(prefix="uml-") as text:
        here = Path(text)
        (here / "lib").mkdir()
        (here / "lib" / "modules").symlink_to(MODULES)
        script = INIT.format(
            here=here, modules=WANTED, repository=REPOSITORY, python=sys.executable, out=out, worlds=" ".join(worlds)
        )
        _program(here / "modprobe", f'#!/bin/sh\nexec /sbin/modprobe -d {here} "$@"\n')
        _program(here / "init", script)
        environment = dict(os.environ)
        shim = _shim(here)
        if shim is not None:
            environment["LD_PRELOAD"] = str(shim)
        done = subprocess.run(
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
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=TIMEOUT_S,
            check=False,
        )
    return done.stdout + done.stderr


def _program(path: Path, text: str) -> None:
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
    with tempfile.TemporaryDirectory(prefix="uml-records-") as text:
        out = Path(text)
        console = boot(out, given.worlds)
        for failed in sorted(out.glob("*.err")):
            print(f"{failed.stem}: {failed.read_text().splitlines()[-1]}")  # noqa: T201
            wrong += 1
        for name, record in records(out):
            count, tried = count + 1, tried + len(record.tried)
            for line in differences(record):
                print(line)  # noqa: T201
                wrong += 1
            if given.record:
                keep(name, record)
    if not count:
        print(console)  # noqa: T201
    seconds = time.monotonic() - started
    print(f"scenarios={count} verdicts={tried} mismatches={wrong} seconds={seconds:.0f}")  # noqa: T201
    return 1 if wrong or not count else 0


def keep(name: str, record: Record) -> None:
    """Write a record into the folder that the tests read."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    safe = "".join(one if one.isalnum() or one == "-" else "_" for one in name)
    (RECORDS / f"{safe}.json.zst").write_bytes(ZstdCompressor(level=19).compress(msgspec.json.encode(record)))


if __name__ == "__main__":
    sys.exit(main())
