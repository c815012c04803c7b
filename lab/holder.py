"""The process that holds a lab: keeps its namespaces open, answers as its pods, and obeys the control socket.

Started by `lab.api.up` as `python -m lab.holder`, in a session of its own. It reports on its standard output once: a JSON
line with its pid, or with what went wrong. It ends on `down` or SIGTERM, and with it everything that it made.
"""

import argparse
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec

from lab.cluster import Lab
from lab.errors import LabFailed
from lab.netns import CLONE_NEWNET, become_root_of_own_user_namespace, unshare
from lab.plan import Backend, Kind
from lab.prober import Ask
from lab.protocol import CONTROL
from tasks.skoop.errors import KubeprobeError

_Json = dict[str, Any]


def main() -> None:
    """Build the lab, say so, and serve until told to end."""
    options = _options()
    os.chdir(options.folder)
    try:
        entered = enter_own_namespaces()
        lab = Lab(
            Kind(options.kind),
            nodes=options.nodes,
            backend=Backend(options.backend),
            families=tuple(int(family) for family in options.families.split(",")),
            folder=Path(options.folder),
            enter_pid=os.getpid() if entered else None,
        )
        lab.up()
    except (KubeprobeError, OSError) as error:
        _report({"failed": str(error)})
        sys.exit(1)
    try:
        holder = Holder(lab)
        _report({"ok": {"pid": os.getpid()}})
        holder.serve()
    finally:
        lab.down()


def enter_own_namespaces() -> bool:
    """Leave the host's network namespace; where that needs it, become root of an own user namespace first (then true)."""
    try:
        unshare(CLONE_NEWNET)
    except PermissionError:
        become_root_of_own_user_namespace()
        unshare(CLONE_NEWNET)
        return True
    return False


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lab.holder")
    for name in ("folder", "kind", "backend", "families"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--nodes", type=int, required=True)
    return parser.parse_args()


def _report(said: _Json) -> None:
    """Say one line on standard output and let go of it (whoever started us waits for its end)."""
    os.write(1, msgspec.json.encode(said) + b"\n")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.close(null)


class Holder:
    """Serves a lab's pods and its control socket."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._running = True
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        Path(CONTROL).unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        os.umask(0o077)
        self._listener.bind(CONTROL)
        self._listener.listen(8)

    def _stop(self, *_: object) -> None:
        self._running = False

    def serve(self) -> None:
        """Work until `down` or SIGTERM."""
        with select.epoll() as poller:
            poller.register(self._listener.fileno(), select.EPOLLIN)
            poller.register(self._lab.servers.fd, select.EPOLLIN)
            while self._running:
                for fd, _ in poller.poll(1.0):
                    if fd == self._listener.fileno():
                        self._obey()
                    else:
                        self._lab.servers.turn()
        self._listener.close()
        Path(CONTROL).unlink(missing_ok=True)

    def _obey(self) -> None:
        client, _ = self._listener.accept()
        with client:
            client.settimeout(5)
            try:
                line = client.makefile("rb").readline(1 << 20)
                answer = self._answer(line)
                client.sendall(msgspec.json.encode(answer) + b"\n")
            except OSError:
                return  # whoever asked has gone away

    def _answer(self, line: bytes) -> _Json:
        try:
            request = msgspec.json.decode(line)
            return {"ok": self._do(request.pop("op"), request)}
        except (KubeprobeError, OSError, msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            return {"failed": str(error) or type(error).__name__}

    def _do(self, op: str, request: _Json) -> object:
        lab = self._lab
        match op:
            case "status":
                return {"pid": os.getpid(), "kind": lab.plan.kind, "broken": lab.broken}
            case "probe":
                asks = msgspec.convert(request["asks"], list[Ask])
                return [lab.probe(ask, tries=request.get("tries", 2)) for ask in asks]
            case "attempt":
                return lab.attempt(*msgspec.convert(request["asks"], list[Ask]))
            case "break":
                return lab.break_(request["fault"], request.get("on"))
            case "mend":
                return lab.mend(request.get("fault"))
            case "forget":
                lab.forget()
                return None
            case "down":
                self._running = False
                return os.getpid()
            case _:
                raise LabFailed("control", f"unknown request {op!r}")


if __name__ == "__main__":
    main()
