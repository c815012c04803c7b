"""Runs the worlds whose devices user-mode Linux lacks (wireguard) under Debian's own kernel in qemu, and compares with the simulator.

    python -m tests.kernel.devices.qemu [--record] [WORLD …]

Needs Debian's packages qemu-system-x86, busybox-static, cpio, kmod, wireguard-tools, iproute2 and iptables; the kernel's package is
downloaded once and unpacked below `.state`, never installed. The machine is emulated in software, sees this system's files read-only
and has no network. The last line holds the figures; exit status 1 if anything differs.
"""

import argparse
import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.kernel.devices.uml import REPOSITORY, judge, program, run_kernel
from tests.kernel.devices.world import QEMU_WORLDS

STATE = REPOSITORY / ".state" / "qemu"
RECORDS = REPOSITORY / "tests" / "data" / "qemu"
TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "cpio": "cpio", "wg": "wireguard-tools"}
METAPACKAGE = "linux-image-amd64"
TIMEOUT_S = 1500
PATIENCE_S = 2.5
FIRST = ("virtio_pci", "9pnet_virtio", "9p")
"""What the first root file system must load to see this system's files."""
WANTED = (
    "veth bridge wireguard nf_tables ip_set iptable_filter iptable_nat iptable_mangle iptable_raw xt_tcpudp nf_conntrack_netlink"
    " inet_diag tcp_diag udp_diag raw_diag"
)
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /host
/bin/busybox mount -t proc proc /proc
for module in {first}; do /bin/busybox insmod /modules/$module; done
share=trans=virtio,version=9p2000.L,msize=512000
/bin/busybox mount -t 9p -o ro,cache=loose,$share host /host
/bin/busybox mount -t 9p -o rw,$share out /host{out}
/bin/busybox mount -t proc proc /host/proc
/bin/busybox mount -t sysfs sysfs /host/sys
/bin/busybox mount -t devtmpfs devtmpfs /host/dev
for folder in /run /var/tmp; do /bin/busybox mount -t tmpfs tmpfs /host$folder; done
echo /modprobe > /proc/sys/kernel/modprobe
/bin/busybox chroot /host /bin/sh {out}/inside
/bin/busybox sync
/bin/busybox poweroff -f
"""
MODPROBE = """#!/bin/busybox sh
exec /bin/busybox chroot /host /sbin/modprobe -d {kernel} "$@"
"""
"""What the kernel itself calls for further modules: it does so in the first root."""
INSIDE = """export PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/run
export PYTHONDONTWRITEBYTECODE=1 XTABLES_LOCKFILE=/run/xtables PATIENCE_S={patience_s}
modprobe -a -d {kernel} {modules}
ip link set lo up
cd {repository} && {python} -m tests.kernel.devices.in_uml {out} {worlds}
echo "ended $?"
"""


def fetch_kernel() -> Path:
    """Return the folder in which Debian's kernel package is unpacked; download it where it is not there yet."""
    unpacked = STATE / "kernel"
    if not list(unpacked.glob("boot/vmlinuz-*")):
        STATE.mkdir(parents=True, exist_ok=True)
        depends = _run(["apt-cache", "depends", METAPACKAGE])
        found = re.search(r"Depends: (linux-image-\S+)", depends)
        if found is None:
            raise FileNotFoundError(f"apt-cache knows no {METAPACKAGE}")
        with tempfile.TemporaryDirectory(dir=STATE) as folder:
            _run(["apt-get", "download", found[1]], cwd=folder)
            _run(["dpkg-deb", "-x", *map(str, Path(folder).glob("*.deb")), str(unpacked)])
    release = _release(unpacked)
    if not (unpacked / "lib" / "modules" / release / "modules.dep").exists():
        _run(["/sbin/depmod", "-b", str(unpacked), release])
    return unpacked


def _release(kernel: Path) -> str:
    return next(kernel.glob("boot/vmlinuz-*")).name.removeprefix("vmlinuz-")


def _run(words: list[str], cwd: str | None = None) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, cwd=cwd).stdout


def boot(kernel: Path, out: Path, worlds: list[str]) -> str:
    """Perform the worlds in the emulated machine, into records in a folder; return what its console said."""
    with tempfile.TemporaryDirectory(prefix="qemu-") as text:
        here = Path(text)
        inside = INSIDE.format(
            patience_s=PATIENCE_S,
            kernel=kernel,
            modules=WANTED,
            repository=REPOSITORY,
            python=sys.executable,
            out=out,
            worlds=" ".join(worlds),
        )
        (out / "inside").write_text(inside)
        initrd = _first_root(kernel, here, out)
        shares = []
        for name, path, more in (("host", "/", ",readonly=on,multidevs=remap"), ("out", str(out), "")):
            shares += ["-fsdev", f"local,id={name},path={path},security_model=none{more}"]
            shares += ["-device", f"virtio-9p-pci,fsdev={name},mount_tag={name}"]
        machine = [
            "qemu-system-x86_64",
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-m",
            "1024",
            "-display",
            "none",
            "-nic",
            "none",
        ]
        machine += ["-serial", "stdio", "-monitor", "none", "-no-reboot"]
        machine += ["-kernel", str(kernel / "boot" / f"vmlinuz-{_release(kernel)}"), "-initrd", str(initrd)]
        machine += ["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]
        return run_kernel([*machine, *shares], dict(os.environ), TIMEOUT_S)


def _first_root(kernel: Path, here: Path, out: Path) -> Path:
    """Return an initramfs with busybox and the modules that lead to this system's files."""
    root = here / "root"
    for folder in ("bin", "modules"):
        (root / folder).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "busybox", root / "bin" / "busybox")
    listed = _run(["/sbin/modprobe", "-d", str(kernel), "-S", _release(kernel), "-a", "--show-depends", *FIRST])
    paths = list(dict.fromkeys(line.split()[1] for line in listed.splitlines() if line.startswith("insmod ")))
    for path in paths:
        shutil.copy(path, root / "modules")
    program(root / "init", INIT.format(first=" ".join(Path(path).name for path in paths), out=out))
    program(root / "modprobe", MODPROBE.format(kernel=kernel))
    names = "\n".join(str(path.relative_to(root)) for path in root.rglob("*"))
    packed = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc"], input=names.encode(), cwd=root, check=True, capture_output=True
    )
    image = here / "initrd.gz"
    image.write_bytes(gzip.compress(packed.stdout, 1))
    return image


def main() -> int:
    """Run, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("worlds", nargs="*", help=f"of {', '.join(path.stem for path in QEMU_WORLDS)}")
    parser.add_argument("--record", action="store_true", help="keep the records for the tests")
    given = parser.parse_args()
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        print(f"apt-get install --no-install-recommends {' '.join(missing)}")  # noqa: T201
        return 2
    kernel, started = fetch_kernel(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="qemu-records-") as text:
        console = boot(kernel, Path(text), given.worlds or [path.stem for path in QEMU_WORLDS])
        seen = judge(Path(text), RECORDS if given.record else None)
    if not seen.scenarios or "ended 0" not in console:
        print(console[-4000:])  # noqa: T201
    seconds = time.monotonic() - started
    print(  # noqa: T201
        f"scenarios={seen.scenarios} verdicts={seen.verdicts} mismatches={seen.mismatches} seconds={seconds:.0f}"
    )
    return 0 if seen.scenarios and not seen.mismatches and "ended 0" in console else 1


if __name__ == "__main__":
    sys.exit(main())
