"""What does the packet filter stop that the cluster needs? Forwarding for pods, the overlay, tracking, redirects.

Every drop that is reported was met by a sample packet in the real rule engine (`witness`). Rules of kube-proxy and of network
plugins are left out: what they stop is meant, and their completeness is checked elsewhere.
"""

from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from tasks.skoop.assertions import witness
from tasks.skoop.assertions.codes import suspect
from tasks.skoop.assertions.rules import TableView, conditions, lost_its_match, network, plain, tables_of, target_option
from tasks.skoop.assertions.scene import Scene
from tasks.skoop.model.addr import Ip, Net, bounds, ip_version
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import NftTable, Section
from tasks.skoop.model.suspicion import Change, DeleteRule, InsertRule, Level, SetPolicy, Suspicion
from tasks.skoop.model.trace import Place, Stage
from tasks.skoop.model.xtables import Rule
from tasks.skoop.netstack.xtables.api import Hook

OWNED = ("KUBE-", "cali-", "cali:", "FLANNEL-", "CNI-", "CILIUM_", "KUBE_", "WEAVE", "ANTREA", "f2b-")
"""How chains begin whose drops are somebody's intention: proxies, network plugins, fail2ban."""

FILTERING = ("raw", "mangle", "filter", "security")
MAX_RULES = 400
"""Stopping rules that are tried out in one chain walk; a host firewall with more is only sampled."""


def filter_suspicions(scene: Scene) -> Iterator[Suspicion]:
    """Yield what the packet filter of a namespace stops."""
    if scene.netns.lacks(Section.IPTABLES) is None:
        for family in scene.cluster.families or (4,):
            if scene.carries_pods():
                yield from _forward(scene, family)
                yield from _untracked(scene, family)
            yield from _own(scene, family)
            yield from _redirects(scene, family)
        if scene.node is not None:
            yield from _overlay(scene)
    for table in scene.netns.nft:
        yield from _native(scene, table)


# --- forwarding ------------------------------------------------------------------------------------------------------


def _forward(scene: Scene, family: int) -> Iterator[Suspicion]:
    samples = list(witness.forwarded(scene, family))
    policy = None
    for table in FILTERING:
        for view in tables_of(scene.netns, table, family):
            for sample in samples:
                place = witness.stopped_at(witness.evaluate(scene, view, sample))
                if place is not None and place.rule == 0 and policy is None:
                    policy = (view, place, sample)
            yield from _strays(scene, view, "FORWARD", samples, "KP-NF-002")
    if policy is not None:
        yield _by_policy(scene, *policy)


def _by_policy(scene: Scene, view: TableView, place: Place, sample: witness.Sample) -> Suspicion:
    return suspect(
        "KP-NF-001",
        f"{scene.name} drops what {sample.what} send: the policy of {place.chain} is DROP and nothing accepts it before",
        subject=scene.id,
        place=place,
        seen=f"-P {place.chain} DROP; {sample.packet} in {sample.in_dev} out {sample.out_dev} meets no ACCEPT",
        expected="policy ACCEPT, or rules that accept the pods' network",
        changes=(
            SetPolicy(
                netns=scene.id,
                backend=view.backend,
                family=view.family,
                table=view.name,
                chain=place.chain,
                policy="ACCEPT",
            ),
        ),
    )


def _strays(scene: Scene, view: TableView, hook: str, samples: list[witness.Sample], code: str) -> Iterator[Suspicion]:
    """Report rules of strangers that stop a packet which fits them."""
    if not samples:
        return
    addresses = _pod_addresses(scene, view.family)
    tried = 0
    for chain, position, rule in view.reachable(hook):
        owned = chain.startswith(OWNED) and not lost_its_match(chain, rule)
        if rule.target.name not in ("DROP", "REJECT") or owned:
            continue
        tried += 1
        if tried > MAX_RULES:
            return
        for sample in witness.narrowed(samples, rule, addresses):
            place = witness.stopped_at(witness.evaluate(scene, view, sample))
            if place is not None and (place.chain, place.rule) == (chain, position):
                yield _stray(scene, view, place, rule, sample, code)
                break


def _stray(scene: Scene, view: TableView, place: Place, rule: Rule, sample: witness.Sample, code: str) -> Suspicion:
    verb = "rejects" if rule.target.name == "REJECT" else "drops"
    return suspect(
        code,
        f"rule {place.rule} of {view.name}/{place.chain} on {scene.name} {verb} {_matter(rule, sample)}",
        subject=scene.id,
        place=place,
        line=f"-A {place.chain} {rule.raw}",
        seen=f"{sample.packet} is stopped there",
        changes=(_delete(view, place, rule),),
    )


def _matter(rule: Rule, sample: witness.Sample) -> str:
    port = (
        f" to port {sample.packet.dport}"
        if any(name in conditions(rule) for name in ("tcp", "udp", "multiport"))
        else ""
    )
    kind = f"{sample.packet.protocol} " if plain(rule, "proto") else ""
    return f"{kind}traffic{port} ({sample.what})"


def _delete(view: TableView, place: Place, rule: Rule) -> Change:
    return DeleteRule(
        netns=view.netns,
        backend=view.backend,
        family=view.family,
        table=view.name,
        chain=place.chain,
        rule=place.rule,
        raw=rule.raw,
    )


def _pod_addresses(scene: Scene, family: int) -> list[Ip]:
    pods = scene.cluster.ipcache.pods_by_netns.values()
    return [ip for pod in pods for ip in pod.ips if ip_version(ip) == family][:500]


# --- the overlay, own traffic ----------------------------------------------------------------------------------------


def _overlay(scene: Scene) -> Iterator[Suspicion]:
    """Report what keeps vxlan packets of other nodes from coming in."""
    seen: set[str] = set()
    for sample in witness.overlay_arrivals(scene):
        for table in FILTERING:
            for view in tables_of(scene.netns, table, sample.packet.version):
                place = witness.stopped_at(witness.evaluate(scene, view, sample))
                if place is not None and str(place) not in seen:
                    seen.add(str(place))
                    yield _overlay_stopped(scene, view, place, sample)


def _overlay_stopped(scene: Scene, view: TableView, place: Place, sample: witness.Sample) -> Suspicion:
    rules = view.rules(place.chain)
    rule = rules[place.rule - 1] if place.rule else None
    port = sample.packet.dport
    if rule is not None:
        changes: tuple[Change, ...] = (_delete(view, place, rule),)
    else:
        accept = f"-p udp -m udp --dport {port} -j ACCEPT"
        changes = (
            InsertRule(
                netns=scene.id,
                backend=view.backend,
                family=view.family,
                table=view.name,
                chain="INPUT",
                rule=1,
                raw=accept,
            ),
        )
    return suspect(
        "KP-VXLAN-010",
        f"{scene.name} drops the overlay's packets (udp port {port}): nothing comes in from the pods of other nodes",
        subject=scene.id,
        place=place,
        line=f"-A {place.chain} {rule.raw}" if rule is not None else f"-P {place.chain} DROP",
        seen=f"{sample.packet} ({sample.what}) is dropped",
        expected="accepted",
        changes=changes,
    )


def _own(scene: Scene, family: int) -> Iterator[Suspicion]:
    """Report strangers' rules for a namespace's own traffic; of a node only for OUTPUT, since firewalls guard INPUT."""
    samples = list(witness.own_traffic(scene, family))
    for table in FILTERING:
        for view in tables_of(scene.netns, table, family):
            for hook, code in ((Hook.OUTPUT, "KP-NF-005"), (Hook.INPUT, "KP-NF-003")):
                mine = [sample for sample in samples if sample.hook == hook]
                for found in _strays(scene, view, hook, mine, code):
                    if scene.node is None or hook == Hook.OUTPUT:
                        yield found
                    else:
                        yield replace(found, level=Level.INFO)


# --- tracking and redirects ------------------------------------------------------------------------------------------


def _untracked(scene: Scene, family: int) -> Iterator[Suspicion]:
    """Report raw rules that exempt pods' packets from connection tracking."""
    assert scene.node is not None, "it carries pods"
    own = [net for net in scene.node.pod_cidrs if ip_version(net) == family]
    for view in tables_of(scene.netns, "raw", family):
        for hook in ("PREROUTING", "OUTPUT"):
            for chain, position, rule in view.reachable(hook):
                if not _exempts(rule) or chain.startswith(OWNED) or not _for_pods(rule, own):
                    continue
                place = view.place(chain, position, hook=hook)
                yield suspect(
                    "KP-CT-003",
                    f"rule {position} of raw/{chain} on {scene.name} exempts traffic of pods from connection tracking",
                    subject=scene.id,
                    place=place,
                    line=f"-A {chain} {rule.raw}",
                    changes=(_delete(view, place, rule),),
                )


def _exempts(rule: Rule) -> bool:
    return rule.target.name == "NOTRACK" or (rule.target.name == "CT" and target_option(rule, "notrack") is not None)


def _for_pods(rule: Rule, networks: list[Net]) -> bool:
    """Say whether a rule's addresses touch a pod network, with no port or interface that would make it a special case."""
    if {"tcp", "udp", "multiport", "set"} & set(conditions(rule)):
        return False
    wanted = [net for net in (network(rule, "src"), network(rule, "dst")) if net is not None]
    if not wanted:
        return plain(rule, "in") not in ("lo",) and plain(rule, "out") not in ("lo",)
    return any(_overlap(net, own) for net in wanted for own in networks)


def _overlap(one: Net, other: Net) -> bool:
    left, right = bounds(one), bounds(other)
    return left.version == right.version and left.first <= right.last and right.first <= left.last


def _redirects(scene: Scene, family: int) -> Iterator[Suspicion]:
    """Report REDIRECT rules of a pod whose port nobody listens on."""
    if scene.pod is None or scene.netns.lacks(Section.SOCKETS) is not None:
        return
    for view in tables_of(scene.netns, "nat", family):
        for hook in ("PREROUTING", "OUTPUT"):
            for chain, position, rule in view.reachable(hook):
                port = target_option(rule, "to-ports") or ""
                if rule.target.name != "REDIRECT" or not port.isdigit():
                    continue
                protocol = Protocol(plain(rule, "proto") or "tcp")
                if not any((s.protocol, s.port) == (protocol, int(port)) for s in scene.netns.sockets):
                    yield suspect(
                        "KP-NF-008",
                        f"{scene.name} redirects {protocol} traffic to port {port}, where nobody listens",
                        subject=scene.id,
                        place=view.place(chain, position, hook=hook),
                        line=f"-A {chain} {rule.raw}",
                        expected=f"a listener on {protocol} port {port}",
                    )


# --- native nftables -------------------------------------------------------------------------------------------------


def _native(scene: Scene, table: NftTable) -> Iterator[Suspicion]:
    """Report native base chains that stop packets at a hook that pods' packets pass: an accept in iptables is no help."""
    if table.name == "kube-proxy" or table.family in ("arp", "netdev") or not scene.carries_pods():
        return
    stopping = _stopping_chains(table)
    for chain, kind, hook, priority, policy in table.hooks:
        reasons = stopping.get(chain, ())
        if kind != "filter" or hook not in ("forward", "prerouting", "postrouting"):
            continue
        if policy == "drop" or reasons:
            yield suspect(
                "KP-NF-006",
                f"the nftables chain {table.family} {table.name} {chain} on {scene.name} "
                + (f"holds {len(reasons)} rules that stop packets" if reasons else "has the policy drop")
                + f" at hook {hook} (priority {priority})",
                subject=scene.id,
                place=Place(
                    netns=scene.id, stage=Stage.NETFILTER, hook=hook, table=f"{table.family} {table.name}", chain=chain
                ),
                line=reasons[0] if reasons else "",
                seen=f"policy {policy}",
            )


def _stopping_chains(table: NftTable) -> dict[str, list[str]]:
    """Return the chains with rules that end in drop or reject, with the JSON text of those rules."""
    found: dict[str, list[str]] = {}
    for text in table.objects:
        parsed = msgspec.json.decode(text)
        rule = parsed.get("rule") if isinstance(parsed, dict) else None
        if not isinstance(rule, dict):
            continue
        verdicts = [
            part for part in rule.get("expr", []) if isinstance(part, dict) and ("drop" in part or "reject" in part)
        ]
        if verdicts:
            found.setdefault(str(rule.get("chain", "")), []).append(text)
    return found
