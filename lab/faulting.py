"""How is a fault put into a lab, and taken out again so that nothing of it is left?

Every step is carried out with what undoes it noted first. Links that go down take routes, addresses and neighbours with
them; so the namespaces that a fault touches are photographed before, and what is missing afterwards is put back.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from lab.build import program, quick_neighbours, restore_tool, wait_ready
from lab.errors import BadRequest, LabFailed
from lab.faults.catalogue import FAULTS
from lab.faults.fault import (
    Break,
    Choke,
    CloseServer,
    Fault,
    Iptables,
    Objects,
    OpenServer,
    Programmed,
    Run,
    Step,
    Sysctl,
    Talk,
    facts,
)
from lab.names import target_address
from lab.netns import Netns
from lab.plan import Backend, ClusterPlan
from lab.prober import Ask
from lab.snapshot import Snapshot

if TYPE_CHECKING:
    from lab.cluster import Lab

Undo = Callable[[], object]


@dataclass(slots=True)
class _Broken:
    done: Break
    undo: list[Undo] = field(default_factory=list)


class Faulting:
    """Puts faults into one lab and takes them out."""

    def __init__(self, lab: "Lab") -> None:
        self._lab = lab
        self._broken: dict[str, _Broken] = {}

    @property
    def broken(self) -> tuple[Break, ...]:
        """The faults that are in now, oldest first."""
        return tuple(one.done for one in self._broken.values())

    def put(self, fault_id: str, on: str | None) -> Break:
        """Put a fault in; if it fails half-way, what was done is undone. Raises BadRequest, LabFailed."""
        fault = FAULTS.get(fault_id)
        if fault is None:
            raise BadRequest("fault", fault_id, tuple(FAULTS))
        if fault_id in self._broken:
            raise BadRequest("fault (it is in already)", fault_id)
        if reason := fault.fits(self._lab.plan):
            raise BadRequest("fault", f"{fault_id}: {reason}")
        names = facts(self._lab.plan, fault, on)
        broken = _Broken(Break(fault=fault_id, on=names["on"], did=()))
        self._lab.forget()
        try:
            self._photograph(fault, names, broken)
            did: list[str] = []
            for step in fault.steps:
                did += self._carry_out(step, names, broken)
        except BaseException:
            _undo_all(broken)
            raise
        broken.done = replace(broken.done, did=tuple(did))
        self._broken[fault_id] = broken
        self._settle(fault, names)
        return broken.done

    def take_out(self, fault_id: str | None) -> tuple[str, ...]:
        """Mend a fault, or all of them, newest first; return their ids. Raises BadRequest for one that is not in."""
        if fault_id is not None and fault_id not in self._broken:
            raise BadRequest("fault (it is not in)", fault_id, tuple(self._broken))
        chosen = [fault_id] if fault_id else list(reversed(self._broken))
        for one in chosen:
            _undo_all(self._broken.pop(one))
        if chosen:
            self._lab.forget()
            wait_ready(self._lab.spaces)
        return tuple(chosen)

    def _settle(self, fault: Fault, names: dict[str, str]) -> None:
        """Old connections know nothing of the fault: forget them, unless it is about old connections."""
        for netns in self._touched(fault, names):
            quick_neighbours(netns)
        self._lab.forget(connections=not any(isinstance(step, Talk) for step in fault.steps))

    def _photograph(self, fault: Fault, names: dict[str, str], broken: _Broken) -> None:
        for netns in self._touched(fault, names):
            broken.undo.append(Snapshot(netns).put_back)

    def _touched(self, fault: Fault, names: dict[str, str]) -> tuple[Netns, ...]:
        runs = [step for step in fault.steps if isinstance(step, Run)]
        return tuple(dict.fromkeys(netns for step in runs for netns in self._spaces(step.where, names)))

    def _spaces(self, where: str, names: dict[str, str]) -> list[Netns]:
        where = where.format_map(names)
        if where.startswith("app:"):
            return [self._lab.spaces[pod.netns] for pod in self._lab.plan.pods if f"app:{pod.app}" == where]
        return [self._lab.spaces[where]]

    def _carry_out(self, step: Step, names: dict[str, str], broken: _Broken) -> list[str]:
        match step:
            case Run():
                return self._run(step, names, broken)
            case Sysctl():
                return self._sysctl(step, names, broken)
            case Iptables():
                return self._iptables(step, names, broken)
            case CloseServer() | OpenServer() | Choke():
                return self._servers(step, names, broken)
            case Objects():
                return self._objects(step, names, broken)
            case Programmed():
                return self._programmed(step, names, broken)
            case Talk():
                return self._talk(step, names)

    def _run(self, step: Run, names: dict[str, str], broken: _Broken) -> list[str]:
        if step.families and not set(step.families) & set(self._lab.plan.families):
            return []
        did = []
        takes_back = (step.undo,) if isinstance(step.undo, str) else step.undo
        for netns in self._spaces(step.where, names):
            do = shlex.split(step.do.format_map(names))
            netns.run(do, lock=self._lab.lock)
            for command in reversed(takes_back):
                undo = shlex.split(command.format_map(names))
                broken.undo.append(partial(netns.run, undo, lock=self._lab.lock))
            did.append(f"{netns.name}: {shlex.join(do)}")
        return did

    def _sysctl(self, step: Sysctl, names: dict[str, str], broken: _Broken) -> list[str]:
        key = step.key.format_map(names)
        (netns,) = self._spaces(step.where, names)
        before = netns.read_sysctl(key)
        netns.sysctl(key, step.value)
        broken.undo.append(lambda: netns.sysctl(key, before))
        dotted = key.replace(".", "#").replace("/", ".").replace("#", "/")
        return [f"{netns.name}: sysctl -w net.{dotted}={step.value}"]

    def _iptables(self, step: Iptables, names: dict[str, str], broken: _Broken) -> list[str]:
        backend = self._lab.plan.backend
        if step.other:
            backend = Backend.NFT if backend is Backend.LEGACY else Backend.LEGACY
        did = []
        for netns in self._spaces(step.where, names):
            for family in step.families:
                if family not in self._lab.plan.families:
                    continue
                saved = netns.run([restore_tool(backend, family, "save"), "-c"], lock=self._lab.lock)
                broken.undo.append(self._restorer(netns, backend, family, saved))
                tool = restore_tool(backend, family, "restore").removesuffix("-restore")
                for args in step.args:
                    argv = [tool, *shlex.split(args.format_map(names))]
                    netns.run(argv, lock=self._lab.lock)
                    did.append(f"{netns.name}: {shlex.join(argv)}")
        return did

    def _restorer(self, netns: Netns, backend: Backend, family: int, saved: str) -> Undo:
        def restore() -> None:
            now = netns.run([restore_tool(backend, family, "save")], lock=self._lab.lock)
            lost = [
                line[1:].strip() for line in now.splitlines() if line.startswith("*") and line not in saved.splitlines()
            ]
            if lost and backend is Backend.NFT:
                for table in lost:
                    netns.run(["nft", "delete", "table", "ip6" if family == 6 else "ip", table])
            elif lost:
                empty = "".join(f"*{table}\n{_EMPTY[table]}COMMIT\n" for table in lost)
                netns.run([restore_tool(backend, family)], empty, lock=self._lab.lock)
            if saved.strip():
                netns.run([restore_tool(backend, family), "-c"], saved, lock=self._lab.lock)

        return restore

    def _servers(self, step: CloseServer | OpenServer | Choke, names: dict[str, str], broken: _Broken) -> list[str]:
        servers, families = self._lab.servers, self._lab.plan.families
        did = []
        for netns in self._spaces(step.where, names):
            match step:
                case CloseServer():
                    for listener in servers.close_listener(netns.name, step.protocol, step.port):
                        broken.undo.append(partial(servers.listen, netns, listener, families))
                    did.append(f"{netns.name}: nobody listens on {step.protocol} {step.port} any more")
                case OpenServer():
                    one = step.listener
                    servers.listen(netns, one, families)
                    broken.undo.append(partial(servers.close_listener, netns.name, one.protocol, one.port))
                    did.append(f"{netns.name}: listens on {one.protocol} {one.address or '*'}:{one.port}")
                case Choke():
                    servers.choke(netns, step.port, families)
                    broken.undo.append(partial(servers.unchoke, netns, step.port, families))
                    did.append(f"{netns.name}: the server on tcp {step.port} does not accept")
        return did

    def _objects(self, step: Objects, names: dict[str, str], broken: _Broken) -> list[str]:
        before = self._lab.plan
        broken.undo.append(lambda: self._replan(before))
        self._replan(step.change(before, names))
        return ["the cluster's objects changed, every kube-proxy followed"]

    def _replan(self, plan: ClusterPlan) -> None:
        self._lab.plan = plan
        self._lab.write_objects()
        for node in plan.nodes:
            program(plan, node, self._lab.spaces[node.netns], lock=self._lab.lock)

    def _programmed(self, step: Programmed, names: dict[str, str], broken: _Broken) -> list[str]:
        lab = self._lab
        node = lab.plan.node(step.node.format_map(names))
        netns = lab.spaces[node.netns]
        plan = step.change(lab.plan, names) if step.change else lab.plan
        broken.undo.append(lambda: program(lab.plan, node, netns, lock=lab.lock))
        program(plan, node, netns, lock=lab.lock, masquerade_all=step.masquerade_all)
        how = "with --masquerade-all" if step.masquerade_all else "from other objects" if step.change else "again"
        return [f"{node.name}: kube-proxy wrote its rules {how}"]

    def _talk(self, step: Talk, names: dict[str, str]) -> list[str]:
        plan = self._lab.plan
        address, _ = target_address(plan, step.dst.format_map(names), 4, step.protocol)
        src = step.src.format_map(names)
        ask = Ask(
            src=src if src in self._lab.spaces else f"pod/{src}",
            dst=address,
            dport=step.dport,
            protocol=step.protocol,
            sport=step.sport,
            timeout_s=0.1,
        )
        self._lab.attempt(ask)
        return [f"{src}: spoke {step.protocol} to {address}:{step.dport} from port {step.sport}"]


_EMPTY = {
    "filter": ":INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n",
    "nat": ":PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n",
    "mangle": ":PREROUTING ACCEPT\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n",
    "raw": ":PREROUTING ACCEPT\n:OUTPUT ACCEPT\n",
}


def _undo_all(broken: _Broken) -> None:
    """Undo newest first; a step that fails does not keep the others from being undone. Raises LabFailed."""
    failed = []
    while broken.undo:
        try:
            broken.undo.pop()()
        except (LabFailed, OSError) as error:
            failed.append(str(error))
    if failed:
        raise LabFailed(f"mending {broken.done.fault}", "; ".join(failed))
