"""The way in: start, ask, break, mend and end labs that run on their own (each held by a process of its own).

A running lab is a folder below `labs_folder()`: its topology file, Kubernetes objects, control socket and the holder's log.
Nothing here needs root where the kernel lets ordinary users make user namespaces; `available` says why not.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path

import msgspec

from lab.errors import BadRequest, LabExists, LabFailed, LabUnavailable, NoSuchLab
from lab.faults.catalogue import FAULTS
from lab.faults.fault import Break, Fault
from lab.names import source_netns, target_address
from lab.plan import Backend, ClusterPlan, Kind, make_plan
from lab.prober import Ask, Attempt
from lab.protocol import ask
from lab.requirements import unavailable_because
from lab.truth import Truth

_START_S, _ASK_S, _END_S = 30.0, 60.0, 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabInfo:
    """A running lab. `topology` is the file to collect it by; `broken` are the faults that are in now."""

    name: str
    kind: Kind
    backend: Backend
    nodes: int
    families: tuple[int, ...]
    folder: Path
    topology: Path
    pid: int
    broken: tuple[Break, ...] = ()

    @property
    def plan(self) -> ClusterPlan:
        """What was built, before any fault."""
        return make_plan(self.kind, nodes=self.nodes, backend=self.backend, families=self.families)


def labs_folder() -> Path:
    """Return where labs keep their state: $KUBEPROBE_LAB_DIR, else kubeprobe/labs in the user's state folder."""
    if given := os.environ.get("KUBEPROBE_LAB_DIR"):
        return Path(given)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "kubeprobe" / "labs"


def available() -> str | None:
    """Return None if this machine can run a lab, else the reason why not."""
    return unavailable_because()


def up(
    kind: Kind | str,
    *,
    name: str = "default",
    nodes: int = 3,
    backend: Backend | str = Backend.LEGACY,
    families: Sequence[int] = (4, 6),
) -> LabInfo:
    """Start a lab and return it, ready. Raises LabUnavailable, LabExists, BadRequest, LabFailed."""
    if kind not in tuple(Kind):
        raise BadRequest("kind", str(kind), tuple(Kind))
    if not 2 <= nodes <= 4:
        raise BadRequest("number of nodes", str(nodes), ("2", "3", "4"))
    if not families or not set(families) <= {4, 6}:
        raise BadRequest("families", str(tuple(families)), ("4", "6", "4 6"))
    folder = _folder(name)
    if reason := available():
        raise LabUnavailable(reason)
    if 6 in families and not Path("/proc/sys/net/ipv6").exists():
        raise LabUnavailable("the kernel has no IPv6; ask for IPv4 only")
    with contextlib.suppress(NoSuchLab):
        raise LabExists(name, status(name).kind)
    shutil.rmtree(folder, ignore_errors=True)  # what a lab that died left behind
    try:
        folder.mkdir(parents=True, mode=0o700)
        pid = _start(folder, kind=kind, nodes=nodes, backend=backend, families=families)
        info = {"name": name, "kind": kind, "backend": backend, "nodes": nodes, "families": tuple(families), "pid": pid}
        (folder / "lab.json").write_bytes(msgspec.json.encode(info))
        return status(name)
    except OSError as error:
        _clear(folder)
        raise LabFailed("starting the lab", str(error)) from error
    except BaseException:
        _clear(folder)
        raise


def _clear(folder: Path) -> None:
    """End what may run in a folder, and remove the folder."""
    with contextlib.suppress(OSError, LabFailed):
        ask(folder, {"op": "down"}, _END_S)
    shutil.rmtree(folder, ignore_errors=True)


def _folder(name: str) -> Path:
    if not name.replace("-", "").replace("_", "").isalnum():
        raise BadRequest("name", name)
    return labs_folder() / name


def _start(folder: Path, *, kind: str, nodes: int, backend: str, families: Sequence[int]) -> int:
    argv = [sys.executable, "-P", "-m", "lab.holder", "--folder", str(folder), "--kind", str(kind)]
    argv += ["--nodes", str(nodes), "--backend", str(backend), "--families", ",".join(map(str, families))]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path)}
    with (folder / "holder.log").open("wb") as log:
        holder = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=env, start_new_session=True
        )
    assert holder.stdout is not None
    with holder.stdout as said:
        ready, _, _ = select.select([said], [], [], _START_S)
        line = said.readline() if ready else b""
    if not line:
        holder.kill()
        holder.wait()
        log_text = (folder / "holder.log").read_text(errors="replace").strip()
        raise LabFailed("starting the lab", log_text.rpartition("\n")[2] or f"no answer within {_START_S:g} s")
    answer = msgspec.json.decode(line)
    if "failed" in answer:
        holder.wait()
        raise LabFailed("starting the lab", answer["failed"])
    holder.returncode = 0  # it lives on; whoever started it does not wait for it
    return holder.pid


def running() -> tuple[str, ...]:
    """Return the names of the running labs."""
    folder = labs_folder()
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    return tuple(name for name in names if _state(folder / name) is not None)


def _state(folder: Path) -> dict[str, object] | None:
    try:
        state: dict[str, object] = ask(folder, {"op": "status"}, _ASK_S)
    except (OSError, ConnectionError):
        return None
    return state


def status(name: str = "default") -> LabInfo:
    """Return a running lab. Raises NoSuchLab."""
    folder = _folder(name)
    state = _state(folder)
    try:
        info = msgspec.json.decode((folder / "lab.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        state = None
    if state is None:
        raise NoSuchLab(name, running())
    more = {"folder": folder, "topology": folder / "topology.yaml", "broken": state["broken"]}
    return msgspec.convert(info | more, LabInfo, dec_hook=lambda kind, value: kind(value))


def down(name: str = "default") -> None:
    """End a lab and everything that it made; of one that has died, what it left. Raises NoSuchLab, LabFailed."""
    folder = _folder(name)
    if folder.is_dir() and _state(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)
        return
    info = status(name)
    watched = os.pidfd_open(info.pid)
    try:
        ask(info.folder, {"op": "down"}, _END_S)
        if not select.select([watched], [], [], _END_S)[0]:
            signal.pidfd_send_signal(watched, signal.SIGKILL)
            select.select([watched], [], [], _END_S)
    finally:
        os.close(watched)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(info.pid, os.WNOHANG)
    shutil.rmtree(info.folder, ignore_errors=True)


def faults(kind: Kind | str | None = None) -> list[Fault]:
    """Return the faults that can be put into labs (of a kind)."""
    return [fault for fault in FAULTS.values() if kind is None or Kind(kind) in fault.kinds]


def break_(name: str, fault: str, on: str | None = None) -> Break:
    """Put a fault into a lab and say what was done. `on` names the node or pod (default: the fault's own choice).

    Raises NoSuchLab, BadRequest, LabFailed.
    """
    if fault not in FAULTS:
        raise BadRequest("fault", fault, tuple(FAULTS))
    info = status(name)
    return msgspec.convert(ask(info.folder, {"op": "break", "fault": fault, "on": on}, _ASK_S), Break)


def mend(name: str, fault: str | None = None) -> tuple[str, ...]:
    """Take a fault (None: every fault) out of a lab again; return the ids of what was mended. Raises NoSuchLab, LabFailed."""
    info = status(name)
    return tuple(ask(info.folder, {"op": "mend", "fault": fault}, _ASK_S))


def make_ask(
    plan: ClusterPlan,
    src: str,
    dst: str,
    dport: int | None = None,
    protocol: str = "tcp",
    *,
    family: int | None = None,
    sport: int = 0,
    payload: int = 0,
    df: bool = False,
    timeout_s: float = 0.5,
) -> Ask:
    """Return the question with its names resolved: `shop/web-1`, `node/n1`, `host/ext`, `svc/shop/web:http`, an address.

    Raises BadRequest for a name, port or protocol that the lab does not have.
    """
    if protocol not in ("tcp", "udp", "icmp"):
        raise BadRequest("protocol", protocol, ("tcp", "udp", "icmp"))
    address, port = target_address(plan, dst, family or plan.families[0], protocol)
    wanted = dport if dport is not None else port
    if protocol != "icmp" and not wanted:
        raise BadRequest("destination without port", dst)
    return Ask(
        src=source_netns(plan, src),
        dst=str(ip_address(address)),
        dport=0 if protocol == "icmp" else wanted,
        protocol=protocol,
        sport=sport,
        payload=payload,
        df=df,
        timeout_s=timeout_s,
    )


def probe(
    name: str,
    src: str,
    dst: str,
    dport: int | None = None,
    protocol: str = "tcp",
    *,
    count: int = 1,
    family: int | None = None,
    sport: int = 0,
    payload: int = 0,
    df: bool = False,
    timeout_s: float = 0.5,
) -> list[Truth]:
    """Try a connection for real, `count` times one after the other, and return the truth about each try.

    `family` picks the address of a name (default: the lab's first). Raises NoSuchLab, BadRequest, LabFailed.
    """
    info = status(name)
    question = make_ask(
        info.plan, src, dst, dport, protocol, family=family, sport=sport, payload=payload, df=df, timeout_s=timeout_s
    )
    answer = ask(info.folder, {"op": "probe", "asks": [asdict(question)] * count}, _ASK_S + 3 * count * timeout_s)
    return msgspec.convert(answer, list[Truth])


def attempt(name: str, asks: Sequence[Ask]) -> list[Attempt]:
    """Try many connections at once, without looking for places (fast: thousands a second). Raises NoSuchLab, LabFailed."""
    info = status(name)
    longest = max((one.timeout_s for one in asks), default=0.0)
    answer = ask(info.folder, {"op": "attempt", "asks": [asdict(one) for one in asks]}, _ASK_S + longest)
    return msgspec.convert(answer, list[Attempt])
