"""A collected cluster out of a folder of raw dumps, as an engineer would mail it.

The folder holds nodes/<node>/, pods/<pod>/ (or pods/<namespace>/<pod>/, pods/<namespace>_<pod>/), outside/<host>/ and
k8s/*.json (`kubectl get … -A -o json`), or is itself the folder of a single node. A folder under nodes/ that Kubernetes has
no Node for is a host outside the cluster. Whose pod a folder is, its name and its file WHERE (`node <name>`) tell, by the
Pod objects. `netns_dumps` says which files there may be and what a missing one means. Beside the namespaces' state, the
configuration that explains it is kept: subnet.env of flannel, kube-proxy's command line and running configuration.
"""

from pathlib import Path

from msgspec.structs import replace

from tasks.skoop.collect.netns_dumps import NetnsDump, load_netns
from tasks.skoop.collect.wiring import wire
from tasks.skoop.model.cluster import ClusterObjects, ClusterState, NodeMeta, PodMeta
from tasks.skoop.model.ids import NetnsId, NodeName, host_netns, node_netns
from tasks.skoop.model.state import NetNS
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.kube import parse_objects
from tasks.skoop.snapshot.bulk import without_gc

SUBNET_ENV = ("flannel-subnet.env", "subnet.env")
CONFIGZ = "kube-proxy-configz.json"
ENDED = frozenset(("Succeeded", "Failed"))
ADVICE = "give a folder with nodes/<node>/, pods/<pod>/ and k8s/*.json, or that of one node"


def load_dumps(folder: Path) -> ClusterState:
    """Return the cluster that a folder of dumps describes, its veths wired.

    Raises ParseError for a folder without dumps, and for a dump that is cut short or broken, naming the file.
    """
    with without_gc():
        return _load(folder)


def _load(folder: Path) -> ClusterState:
    if not folder.is_dir():
        raise ParseError(str(folder), 0, 0, "no such folder", ADVICE)
    objects = _objects(folder / "k8s")
    loaded: dict[NetnsId, NetNS] = {}
    config = dict(objects.config)
    named = {node.name for node in objects.nodes}
    for dump in _dumps(folder, "nodes"):
        name = dump.folder.name
        is_node = name in named or not named
        netns = node_netns(name) if is_node else host_netns(name)
        loaded[netns] = load_netns(dump, netns)
        if is_node:
            config.update(_config(dump.folder, name))
    for dump in _dumps(folder, "outside"):
        loaded[host_netns(dump.folder.name)] = load_netns(dump, host_netns(dump.folder.name))
    strangers: list[PodMeta] = []
    for dump in _dumps(folder, "pods", depth=2):
        pod = _pod_of(dump, folder / "pods", objects)
        if pod is None:
            pod = _stranger(dump, folder / "pods")
            strangers.append(pod)
        if pod.netns in loaded:
            raise ParseError(dump.name, 0, 0, f"a second folder for {pod.netns}", ADVICE)
        loaded[pod.netns] = load_netns(dump, pod.netns)
    if not loaded:
        _flat(folder, loaded, config)
    return wire(_state(folder, replace(objects, config=config), strangers, loaded))


def _dumps(folder: Path, group: str, depth: int = 1) -> list[NetnsDump]:
    """Return the folders with dumps in a group of the layout, sorted by name; at the second depth too if asked."""
    top = folder / group
    if not top.is_dir():
        return []
    found = []
    for child in sorted(path for path in top.iterdir() if path.is_dir()):
        dump = NetnsDump(child, f"{group}/{child.name}")
        if dump.exists() or depth == 1:
            found.append(dump)
        else:
            inner = sorted(path for path in child.iterdir() if path.is_dir())
            found += [NetnsDump(path, f"{group}/{child.name}/{path.name}") for path in inner]
    return found


def _objects(folder: Path) -> ClusterObjects:
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return parse_objects({f"k8s/{path.name}": path.read_text() for path in files})


def _config(folder: Path, node: str) -> dict[str, str]:
    """Return what a node's plugin and kube-proxy were configured with, by name in ClusterObjects.config."""
    found = {}
    for name in SUBNET_ENV:
        if (folder / name).is_file():
            found[f"node/{node}/subnet.env"] = (folder / name).read_text()
            break
    if (folder / CONFIGZ).is_file():
        found[f"node/{node}/kube-proxy.configz"] = (folder / CONFIGZ).read_text()
    processes = folder / "processes.txt"
    if processes.is_file():
        for line in processes.read_text().splitlines():
            if line.split(" ", 1)[0].rpartition("/")[2] == "kube-proxy":
                found[f"node/{node}/kube-proxy.cmdline"] = line.strip()
    return found


def _pod_of(dump: NetnsDump, top: Path, objects: ClusterObjects) -> PodMeta | None:
    """Return the pod whose folder this is, None if no object is of that name. Raises ParseError if several are."""
    namespace, name = _name_of(dump.folder, top)
    where = _where(dump.folder)
    found = [
        pod
        for pod in objects.pods
        if not pod.host_network
        and ((pod.name == name and namespace in ("", pod.namespace)) or f"{pod.namespace}_{pod.name}" == name)
        and where in ("", pod.node_name)
    ]
    if len(found) > 1:
        names = ", ".join(pod.key for pod in found)
        raise ParseError(dump.name, 0, 0, f"may be of any of {names}", "name the folder <namespace>_<pod>")
    return found[0] if found else None


def _name_of(folder: Path, top: Path) -> tuple[str, str]:
    """Return (namespace or "", name) as the folder's path has them."""
    return ("" if folder.parent == top else folder.parent.name), folder.name


def _where(folder: Path) -> str:
    """Return the node that the folder's file WHERE names, or ""."""
    path = folder / "WHERE"
    words = path.read_text().split() if path.is_file() else []
    return words[1] if len(words) == 2 and words[0] == "node" else ""


def _stranger(dump: NetnsDump, top: Path) -> PodMeta:
    """Return a stand-in for the object of a pod that Kubernetes' lists do not have: name and node as the folder tells."""
    namespace, name = _name_of(dump.folder, top)
    if not namespace and "_" in name:
        namespace, _, name = name.partition("_")
    return PodMeta(
        namespace=namespace or "default", name=name, node_name=NodeName(_where(dump.folder)), phase="Unknown"
    )


def _flat(folder: Path, loaded: dict[NetnsId, NetNS], config: dict[str, str]) -> None:
    """Load the folder as that of a single node."""
    dump = NetnsDump(folder, folder.name)
    if not dump.exists():
        raise ParseError(str(folder), 0, 0, "no dumps here", ADVICE)
    netns = node_netns(folder.name)
    loaded[netns] = load_netns(dump, netns)
    config.update(_config(folder, folder.name))


def _state(
    folder: Path, objects: ClusterObjects, strangers: list[PodMeta], loaded: dict[NetnsId, NetNS]
) -> ClusterState:
    """Return the whole, with stand-ins for what has dumps but no object, and a word on what has an object but no dumps."""
    known = {node_netns(node.name) for node in objects.nodes}
    unknown = [netns for netns in loaded if netns.startswith("node/") and netns not in known]
    stand_ins = tuple(NodeMeta(name=NodeName(netns.removeprefix("node/"))) for netns in unknown)
    pods = tuple(
        replace(
            pod,
            ips=tuple(
                address.ip
                for link in loaded[pod.netns].interfaces
                for address in link.addresses
                if address.scope == "global"
            ),
        )
        for pod in strangers
    )
    uncollected = {
        node_netns(node.name): f"no folder nodes/{node.name}"
        for node in objects.nodes
        if node_netns(node.name) not in loaded
    }
    for pod in objects.pods:
        if pod.netns not in loaded and not pod.host_network and pod.node_name and pod.phase not in ENDED:
            uncollected[pod.netns] = f"no folder pods/{pod.name}"
    return ClusterState(
        objects=replace(objects, nodes=objects.nodes + stand_ins, pods=objects.pods + pods),
        netns=loaded,
        source=f"dumps in {folder.name}",
        uncollected=uncollected,
    )
