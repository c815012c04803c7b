"""What a snapshot must not hold, taken out before it is written.

Secrets and environment variables are never collected. What else could carry one is cut here: text of ConfigMaps that no
diagnosis reads, the copy of the whole object that kubectl leaves in an annotation, annotations and settings whose name
says credential, passwords and tokens in command lines and URLs. Names, labels and addresses stay: without them a snapshot
says nothing. The result of a redaction is a fixed point: redacting it again changes nothing.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from tasks.skoop.model.cluster import ClusterObjects, ClusterState
from tasks.skoop.model.state import NetNS, Socket

REMOVED = "(removed)"

_CREDENTIAL = re.compile(
    r"passw(or)?d|passphrase|secret|token|api-?_?key|private-?_?key|credential|client-?_?key|key-data|bearer|psk",
    re.IGNORECASE,
)
_DROPPED_ANNOTATIONS = ("kubectl.kubernetes.io/last-applied-configuration", "deprecated.daemonset.template.generation")
_SECRET_SYSCTLS = ("/tcp_fastopen_key", "/stable_secret")
_WHOLE_VALUE_BYTES = 16 << 10
"""An annotation longer than this is not a setting that a diagnosis reads."""

_KEPT_CONFIG = re.compile(
    r"""
      (.*/)? (net-conf\.json | cni-conf\.json | [^/]*\.conflist | subnet\.env)     # flannel, CNI
    | (.*/)? (kube-)?proxy/(config\.conf | configz?(\.json)? | mode)              # kube-proxy
    | (.*/)? (calico|cilium|flannel|antrea|ovn|weave|cni)[^/]*/ [^/]+              # a plugin's own settings
    | node/[^/]+/ [^/]+
    """,
    re.VERBOSE,
)
_DROPPED_CONFIG = re.compile(r"kubeconfig|\.(key|pem|crt|p12)$", re.IGNORECASE)
_SETTING = re.compile(
    r"""(?P<name> ["']? [\w.\-]* (?:passw(?:or)?d|passphrase|secret|token|api-?_?key|private-?_?key|client-?_?key|key-data
        |credential|bearer|psk) [\w.\-]* ["']? \s* [:=] \s*)
        (?P<value> "[^"\n]*" | '[^'\n]*' | [^\s,;}\]]+ )""",
    re.IGNORECASE | re.VERBOSE,
)
_OPTION = re.compile(
    r"""(?P<name> --?[\w\-]*(?:passw(?:or)?d|passphrase|secret|token|api-?key|private-?key|credential|psk)[\w\-]* (?:=|\s+))
        (?P<value> [^\s\-]\S* )""",
    re.IGNORECASE | re.VERBOSE,
)
_URL_USER = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.\-]*://)(?P<user>[^/\s:@]*):(?P<password>[^/\s@]+)@", re.IGNORECASE)
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)


def redact(state: ClusterState) -> ClusterState:
    """Return the state without what could hold a credential; the very same object where there is nothing to remove."""
    objects = _redact_objects(state.objects)
    netns = {name: _redact_netns(value) for name, value in state.netns.items()}
    if objects is state.objects and all(netns[name] is value for name, value in state.netns.items()):
        return state
    return replace(state, objects=objects, netns=netns)


def _redact_objects(objects: ClusterObjects) -> ClusterObjects:
    nodes = tuple(replace(node, annotations=_annotations(node.annotations)) for node in objects.nodes)
    services = tuple(replace(service, annotations=_annotations(service.annotations)) for service in objects.services)
    policies = tuple(_policy(text) for text in objects.network_policies)
    others = {kind: tuple(_policy(text) for text in texts) for kind, texts in objects.policies.items()}
    config = {name: redact_text(text) for name, text in objects.config.items() if keeps_config(name)}
    changed = replace(
        objects, nodes=nodes, services=services, network_policies=policies, policies=others, config=config
    )
    return objects if changed == objects else changed


def _annotations(annotations: Mapping[str, str]) -> dict[str, str]:
    return {
        name: redact_text(value)
        for name, value in annotations.items()
        if name not in _DROPPED_ANNOTATIONS and not _CREDENTIAL.search(name) and len(value) <= _WHOLE_VALUE_BYTES
    }


def _policy(text: str) -> str:
    """Return a NetworkPolicy without the parts of its metadata that no policy engine reads."""
    try:
        policy: dict[str, Any] = json.loads(text)
        metadata = policy["metadata"]
        dropped = {"managedFields"} & metadata.keys()
        annotations = metadata.get("annotations")
        kept = _annotations(annotations) if annotations else annotations
    except (ValueError, KeyError, TypeError, AttributeError):
        return text  # not what the API server gives: the policy engine says so, with the text
    if not dropped and kept == annotations:
        return text
    for name in dropped:
        del metadata[name]
    if annotations is not None:
        metadata["annotations"] = kept
    return json.dumps(policy, separators=(",", ":"), ensure_ascii=False)


def keeps_config(name: str) -> bool:
    """Say whether a piece of configuration of that name is one that a diagnosis reads."""
    return _KEPT_CONFIG.fullmatch(name) is not None and _DROPPED_CONFIG.search(name) is None


def redact_text(text: str) -> str:
    """Return settings or a command line with the values of passwords, tokens and keys replaced."""
    if text.lstrip().startswith(("{", "[")):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            pass  # not JSON after all: YAML in its flow form, or prose
        else:
            clean = _clean_json(content)
            return text if clean == content else json.dumps(clean, ensure_ascii=False)
    return _SETTING.sub(_removed_value, _clean_string(text))


def _clean_string(text: str) -> str:
    return _URL_USER.sub(rf"\g<scheme>\g<user>:{REMOVED}@", _PEM.sub(REMOVED, text))


def _removed_value(found: re.Match[str]) -> str:
    quote = found["value"][0] if found["value"][0] in "\"'" else ""
    return f"{found['name']}{quote}{REMOVED}{quote}"


def _clean_json(value: Any, *, secret: bool = False) -> Any:  # noqa: ANN401 -- JSON is any of its kinds
    if isinstance(value, dict):
        return {name: _clean_json(one, secret=secret or bool(_CREDENTIAL.search(name))) for name, one in value.items()}
    if isinstance(value, list):
        return [_clean_json(one, secret=secret) for one in value]
    if isinstance(value, str):
        return REMOVED if secret else _clean_string(value)
    return value


def redact_command(text: str) -> str:
    """Return a process's command line with what follows options such as `--token` replaced."""
    return _OPTION.sub(rf"\g<name>{REMOVED}", redact_text(text))


def _redact_netns(netns: NetNS) -> NetNS:
    sockets = tuple(_redact_socket(socket) for socket in netns.sockets)
    sysctls = {name: value for name, value in netns.sysctls.items() if not name.endswith(_SECRET_SYSCTLS)}
    if sockets == netns.sockets and len(sysctls) == len(netns.sysctls):
        return netns
    return replace(netns, sockets=sockets, sysctls=sysctls)


def _redact_socket(socket: Socket) -> Socket:
    if not socket.process:
        return socket
    process = redact_command(socket.process)
    return socket if process == socket.process else replace(socket, process=process)
