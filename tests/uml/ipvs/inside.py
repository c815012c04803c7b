"""Inside user-mode Linux: a lab in IPVS mode, case after case, probed for real and collected with the project's own collectors.

    python -m tests.uml.ipvs.inside --out FOLDER [--named] [--seed S --count N]

Writes one `NUMBER.msgpack` per case (`record.Recorded`). Run by init.sh; needs a kernel with ip_vs.
"""

import argparse
import os
import subprocess
import time
from itertools import product
from pathlib import Path

from msgspec.structs import replace

from lab.build import VTEP_NAME, vtep_address
from lab.cluster import Lab
from lab.cnirules import add_plugin_rules
from lab.kubeproxy import Config
from lab.kubeproxy_ipvs import DUMMY, SYSCTLS, Programming, render_ipvs
from lab.netns import Netns
from lab.objects import all_objects
from lab.plan import POD_NETS, Backend, Kind, NodePlan
from lab.prober import Ask, Attempt
from tasks.skoop.collect.messages import Request
from tasks.skoop.collect.topology import collect_topology, nearest_first, read_topology
from tasks.skoop.collect.workers import WorkerPool
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.trace import View
from tests.uml.ipvs.cases import ADDED, DEFENSE_TIMER, NAMED, WEB, WEB_1, Case, mixed
from tests.uml.ipvs.record import Recorded, Row, write

FAMILIES = (4, 6)
TABLES = ("raw", "mangle", "nat", "filter")
AT_ONCE = 64
TRIES = {"node": 2, "pod": 3, "host": 3}
SOURCES = ("pod/shop/client-1", "pod/shop/web-1", "pod/shop/client-2", "node/n1", "host/ext")
_WRITES = (
    ("ipv4/ip_forward", 1),
    ("ipv6/conf/all/forwarding", 1),
    ("ipv4/conf/all/route_localnet", 1),
    ("ipv4/conf/all/rp_filter", 0),
    ("bridge/bridge-nf-call-iptables", 1),
    ("bridge/bridge-nf-call-ip6tables", 1),
    ("ipv4/vs/snat_reroute", 1),
    ("ipv4/vs/drop_packet", 0),
    ("ipv4/vs/drop_entry", 0),
    ("ipv4/vs/am_droprate", 10),
    *SYSCTLS,
)


def main() -> None:
    """Run the cases that the options name."""
    parser = argparse.ArgumentParser(prog="tests.uml.ipvs.inside")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--named", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--part", default="0/1", help="every N-th case from the K-th on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=0)
    options = parser.parse_args()
    cases = [case for case in (NAMED if options.named else ()) if options.only in case.name.replace(" ", "-")]
    cases += [mixed(options.seed, number) for number in range(options.count)]
    part, parts = (int(number) for number in options.part.split("/"))
    cases = cases[part::parts]
    Path("/run/empty").write_text("".join(f"*{table}\nCOMMIT\n" for table in TABLES))
    folder = Path("/run/lab")
    folder.mkdir()
    lab = Lab(Kind.FLANNEL_VXLAN, nodes=2, backend=Backend.LEGACY, families=FAMILIES, folder=folder)
    lab.up()
    try:
        world = World(lab)
        for number, case in enumerate(cases):
            began = time.monotonic()
            recorded = world.run(case)
            write(options.out / f"{number:04d}.msgpack", recorded)
            print(f"{number:4d} {time.monotonic() - began:5.1f} s {len(recorded.rows)} rows  {case.name}", flush=True)
        world.close()
    finally:
        lab.down()


class World:
    """The lab, its nodes programmed as kube-proxy's IPVS mode does."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.programs = {node.name: self._render(node) for node in lab.plan.nodes}
        for node in lab.plan.nodes:
            self._write_files(node)
            self._reset(node)
        self._topology = read_topology(lab.topology)
        self._pool = WorkerPool(1)
        self._state = collect_topology(lab.topology, workers=1)

    def close(self) -> None:
        """End the collecting process."""
        self._pool.close()

    def _render(self, node: NodePlan) -> list[Programming]:
        plan = self.lab.plan
        lists = all_objects(plan)
        config = Config(node=node.name, node_ips=node.ips, cluster_cidrs=tuple(POD_NETS[f] for f in FAMILIES))
        local = (*node.ips, *node.gateways, *(vtep_address(node, family) for family in VTEP_NAME))
        made = []
        for family in FAMILIES:
            one = render_ipvs(lists["services"]["items"], lists["endpointslices"]["items"], config, family, local)
            add_plugin_rules(one.tables, plan, node, family)
            made.append(one)
        return made

    def _reset(self, node: NodePlan) -> None:
        """Put a node back to what kube-proxy made of it, whatever a case did."""
        netns = self.lab.spaces[node.netns]
        loaded = "[ $(cat /proc/sys/net/ipv4/vs/drop_packet) = 0 ]"
        _shell(netns, f"{loaded} || {{ echo 0 > /proc/sys/net/ipv4/vs/drop_packet; {DEFENSE_TIMER}; }}")
        for key, value in _WRITES:
            netns.sysctl(key, value)
        peer, gateway = 3 - node.number, node.gateways[0]
        script = [
            f"ip link del {DUMMY}; ip link add {DUMMY} type dummy; ip link set {DUMMY} arp off",
            f"ip neigh del {WEB_1} dev cni0",
            "while ip rule del pref 32765; do :; done",
            f"ip -force -batch /run/{node.name}.ip",
            "ip route replace default via 172.18.0.1 dev eth0",
            f"ip route replace 10.244.{peer}.0/24 via 10.244.{peer}.0 dev flannel.1 onlink",
            f"ip route replace 10.244.{node.number}.0/24 dev cni0 proto kernel scope link src {gateway}",
            "iptables-legacy-restore < /run/empty; ip6tables-legacy-restore < /run/empty; ipset -X",
            f"ipset restore < /run/{node.name}.ipset; ipvsadm -C; ipvsadm -R < /run/{node.name}.ipvs",
            f"iptables-legacy-restore < /run/{node.name}.4; ip6tables-legacy-restore < /run/{node.name}.6",
        ]
        _shell(netns, "; ".join(script))

    def _write_files(self, node: NodePlan) -> None:
        programs = self.programs[node.name]
        gone = [
            f"route del {kind} {net}"
            for kind in ("blackhole", "prohibit")
            for net in ("10.244.1.0/24", "10.244.2.0/24")
        ]
        lines = [*gone, "route del blackhole 10.250.0.0/16", "route del 10.244.1.0/24", "route del 10.244.2.0/24"]
        for family, made in zip(FAMILIES, programs, strict=True):
            lines += [f"addr add {ip}/{32 if family == 4 else 128} dev {DUMMY}" for ip in made.addresses]
            text = made.tables.render()
            missing = "".join(f"*{name}\nCOMMIT\n" for name in TABLES if f"*{name}\n" not in text)
            Path(f"/run/{node.name}.{family}").write_text(text + missing)
        Path(f"/run/{node.name}.ip").write_text("\n".join(lines) + "\n")
        Path(f"/run/{node.name}.ipset").write_text("".join(made.ipset_restore() for made in programs))
        Path(f"/run/{node.name}.ipvs").write_text("".join(made.ipvsadm_restore() for made in programs))

    def _collect(self, places: set[str]) -> ClusterState:
        """Return the state, with only those namespaces collected anew that a case can have changed."""
        netns = dict(self._state.netns)
        for machine, own in self._topology.machines.items():
            for place in own:
                if place.id in places:
                    others = nearest_first(self._topology.machines, place)
                    answer = self._pool.collect(Request(place=place, others=tuple(others)))
                    if answer.netns is None:
                        raise RuntimeError(f"{machine}: {answer.error}")
                    netns[place.id] = answer.netns
        return replace(self._state, netns=netns)

    def run(self, case: Case) -> Recorded:
        """Apply a case, probe, collect, and put everything back."""
        done = []
        for where, command in case.commands:
            netns = self.lab.spaces[where if "/" in where else f"node/{where}"]
            if _shell(netns, command, check=False):
                done.append(f"{where}: {command}")
            elif not case.name.startswith("mixed"):
                print(f"FAILED in {case.name}: {where}: {command}", flush=True)
        self._forget()
        rows = self._probe()
        self._forget()
        state = self._collect({"node/n1", "node/n2", *(where for where, _ in case.commands if "/" in where)})
        self._undo(case)
        return Recorded(name=case.name, commands=tuple(done), state=state, rows=tuple(rows))

    def _undo(self, case: Case) -> None:
        for where, command in case.commands:
            if where.startswith("pod/") and command.startswith("ip addr add"):
                _shell(self.lab.spaces[where], command.replace(" add ", " del "))
        for node in self.lab.plan.nodes:
            self._reset(node)

    def _forget(self) -> None:
        """Forget connections, neighbours and path MTUs; IPVS forgets its own with its services, so these are written anew."""
        self.lab.forget()
        for node in self.lab.plan.nodes:
            netns = self.lab.spaces[node.netns]
            saved = netns.run(["ipvsadm", "-Sn"])
            order = netns.read_proc("ip_vs")
            if len(order.splitlines()) > 3:
                netns.run(["ipvsadm", "-C"])
                netns.run(["ipvsadm", "-R"], saved)

    def _probe(self) -> list[Row]:
        asks = [
            Ask(src=src, dst=dst, dport=port, protocol=protocol, timeout_s=1.4 if src.startswith("node/") else 0.5)
            for src, (dst, port, protocol) in product(SOURCES, destinations(self.lab))
        ]
        slow = [ask for ask in asks if ask.src.startswith("node/")]
        quick = [ask for ask in asks if not ask.src.startswith("node/")]
        found: dict[Ask, list[Attempt]] = {ask: [] for ask in asks}
        for part in (quick, slow):
            for turn in range(TRIES[part[0].src.partition("/")[0]]):
                again = [ask for ask in part if turn == 0 or not _certain(found[ask])]
                for ask, attempt in zip(again, self._attempt(again), strict=True):
                    found[ask].append(attempt)
        return [Row.of(ask, attempts) for ask, attempts in found.items()]

    def _attempt(self, asks: list[Ask]) -> list[Attempt]:
        """Try everything once; what went silent all at once is tried again: then it was this machine that stood still."""
        results: list[Attempt] = []
        for start in range(0, len(asks), AT_ONCE):
            some = asks[start : start + AT_ONCE]
            for _ in range(4):
                attempts = self.lab.attempt(*some)
                if len(some) < 8 or any(attempt.view != View.TIMEOUT for attempt in attempts):
                    break
            results += attempts
        return results


def _certain(attempts: list[Attempt]) -> bool:
    """Two silences need no third."""
    return len(attempts) >= 2 and all(attempt.view == "timeout" for attempt in attempts)


def destinations(lab: Lab) -> list[tuple[str, int, str]]:
    """Return what every source asks for: (address, port, protocol)."""
    found: list[tuple[str, int, str]] = []
    for service in lab.plan.services:
        for ip in service.cluster_ips(FAMILIES) if service.number else ():
            found += [(ip, port.port, port.protocol.lower()) for port in service.ports if service.namespace == "shop"]
    four = [one for one in found if ":" not in one[0]]
    six = [one for one in found if ":" in one[0] and one[0].endswith((":a01", ":a0f", ":a06", ":a05"))]
    nodes = [node.ips[0] for node in lab.plan.nodes]
    ports = [(ip, port, "tcp") for ip in nodes for port in (30080, 30081, 30082, 30084)]
    more = [("172.18.0.200", 80, "tcp"), ("172.18.0.210", 80, "tcp"), ("10.244.1.1", 30080, "tcp")]
    odd = [
        (WEB, 81, "tcp"),
        (WEB, 0, "icmp"),
        (WEB, 8080, "tcp"),
        (WEB, 10250, "tcp"),
        (ADDED, 80, "tcp"),
        (ADDED, 8080, "tcp"),
    ]
    six += [(lab.plan.nodes[0].ips[1], 30080, "tcp")]
    return [*four, *six, *ports, *more, *odd]


def _shell(netns: Netns, command: str, *, check: bool = True) -> bool:
    with netns.inside():
        done = subprocess.run(
            ["/bin/sh", "-c", command], capture_output=True, text=True, check=False, env=dict(os.environ)
        )
    if check and done.returncode:
        raise RuntimeError(f"{netns.name}: {command}: {done.stderr.strip()}")
    return done.returncode == 0


if __name__ == "__main__":
    main()
