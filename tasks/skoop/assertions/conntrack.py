"""Does connection tracking stand in the way? A full table, and entries that lead to backends that are gone."""

from collections.abc import Iterator

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.assertions.scene import Scene, Target
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import ConntrackEntry, Section
from tasks.skoop.model.suspicion import FlushConntrack, Level, Suspicion
from tasks.skoop.model.trace import Place, Stage

COUNT, MOST = "net/netfilter/nf_conntrack_count", "net/netfilter/nf_conntrack_max"
NEARLY_FULL = 0.95


def conntrack_suspicions(scene: Scene) -> Iterator[Suspicion]:
    """Yield a full table and stale UDP entries of a node (TCP connections end by themselves)."""
    yield from _room(scene)
    if scene.node is None or scene.netns.lacks(Section.CONNTRACK) is not None:
        return
    known = scene.cluster.udp_backends
    seen: set[tuple[Target, Target]] = set()
    for entry in scene.netns.conntrack:
        if entry.protocol != Protocol.UDP:
            continue
        front = (entry.original.dst, entry.original.dport)
        back = (entry.reply.src, entry.reply.sport)
        backends = known.get(front)
        if backends is None or back in backends or (front, back) in seen:
            continue
        if back == front and not backends:
            continue  # nobody could be chosen, and nobody is there now
        seen.add((front, back))
        yield _stale(scene, entry, back == front)


def _room(scene: Scene) -> Iterator[Suspicion]:
    count, most = scene.sysctl(COUNT) or "", scene.sysctl(MOST) or ""
    if not count.isdigit() or not most.isdigit() or int(most) == 0 or int(count) < int(most) * NEARLY_FULL:
        return
    full = int(count) >= int(most)
    yield suspect(
        "KP-CT-001",
        f"the connection tracking table of {scene.name} is {'full' if full else 'nearly full'} ({count} of {most})",
        subject=scene.id,
        place=Place(netns=scene.id, stage=Stage.CONNTRACK, key=MOST),
        seen=count,
        expected=f"well below {most}",
        level=Level.CRITICAL if full else Level.WARNING,
    )


def _stale(scene: Scene, entry: ConntrackEntry, untranslated: bool) -> Suspicion:
    original, reply = entry.original, entry.reply
    goes = "is not translated at all" if untranslated else f"goes on to {reply.src}:{reply.sport}, which is no endpoint"
    return suspect(
        "KP-CT-002",
        f"{scene.name} remembers the flow {original.src}:{original.sport} > {original.dst}:{original.dport}, which {goes}",
        subject=scene.id,
        place=Place(netns=scene.id, stage=Stage.CONNTRACK, key=f"{original.dst}:{original.dport}"),
        seen=f"reply src={reply.src} sport={reply.sport}",
        changes=(FlushConntrack(netns=scene.id, dst=original.dst, dport=original.dport),),
    )
