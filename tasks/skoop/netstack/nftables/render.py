"""A rule as `nft list ruleset` shows it, from its JSON: for people who look for it in their own listing.

Follows the printers of nftables (src/expression.c, src/statement.c). Where a listing of another version would spell something
differently the rule's handle, at the end, still names it (`nft -a list ruleset`). What has no spelling here stays JSON.
"""

from collections.abc import Callable, Mapping

from tasks.skoop.netstack.nftables.jsonform import Json, compact, fields, is_named, items, named, pair, text
from tasks.skoop.netstack.xtables.truth import NotUnderstood

QUOTED = frozenset(
    (
        *("iif", "oif", "iifname", "oifname", "ibrname", "obrname", "sdif", "sdifname", "iifkind", "oifkind"),
        *("iifgroup", "oifgroup", "time", "hour", "day", "helper"),
    )
)
BARE = frozenset(("iif", "oif", "iifname", "oifname", "iifgroup", "oifgroup"))
"""Keys of `meta` that are written without that word."""
HEX = frozenset(("mark",))
FLAGS = frozenset(("ct state", "ct status", "tcp flags"))
"""Values whose bare words ask for bits, so that equality needs its sign."""
OPERATORS = ("&", "|", "^", "<<", ">>")
Writer = Callable[[Json], str]


def rendered(statements: list[Json], *, family: str = "", comment: str = "", handle: int = 0) -> str:
    """Return the line of a rule of a table of that family: statements, comment, and the handle unless it is 0."""
    words = [_statement(value) for value in statements]
    if USUAL_REJECT.get(family) in statements:
        words = [
            "reject" if value == USUAL_REJECT[family] else word for value, word in zip(statements, words, strict=True)
        ]
    if comment:
        words.append(f'comment "{comment}"')
    if handle:
        words.append(f"# handle {handle}")
    return " ".join(word for word in words if word)


def _statement(value: Json) -> str:
    if isinstance(value, str):
        return value
    try:
        name, content = named(value)
        writer = STATEMENTS.get(name)
        if writer is not None:
            return writer(content)
    except (NotUnderstood, ValueError):
        pass
    return compact(value)


def _expression(value: Json, key: str = "") -> str:
    """Return an expression; `key` is what it is compared with, which says how numbers and names are written."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "exists" if value else "missing"
    if isinstance(value, int | float):
        return f"0x{value:08x}" if key in HEX and isinstance(value, int) else str(value)
    if isinstance(value, str):
        return f'"{value}"' if key in QUOTED and value != "*" and not value.startswith("@") else value
    if isinstance(value, list):
        return ",".join(_expression(each, key) for each in value)
    name, content = named(value)
    if name in OPERATORS:
        operands = items(content)
        kind = "" if name in ("<<", ">>") else key or _key(operands[0])
        return f" {name} ".join([_operand(operands[0], kind), *(_operand(each, kind) for each in operands[1:])])
    writer = EXPRESSIONS.get(name)
    return writer(content, key) if writer else compact(value)


def _operand(value: Json, key: str) -> str:
    if isinstance(value, list):
        return f"({' | '.join(_expression(each, key) for each in value)})"
    return _expression(value, key)


def _key(value: Json) -> str:
    """Return what kind of number a value is: the key of `meta` or `ct`, also below operators."""
    if is_named(value, "meta", "ct"):
        return text(named(value)[1], "key", "")
    if is_named(value, "fib"):
        return text(named(value)[1], "result", "")
    if is_named(value, *OPERATORS):
        operands = items(named(value)[1])
        return next((found for found in map(_key, operands) if found), "")
    return ""


def _match(content: Json) -> str:
    given = fields(content)
    op, left, right = text(given, "op"), given.get("left"), given.get("right")
    keys = [_key(part) for part in items(fields(left)["concat"])] if is_named(left, "concat") else [_key(left)]
    binary = is_named(left, *OPERATORS)
    if binary and (masked := _masked(left, op, right)):
        return masked
    binary = binary or (_expression(left) in FLAGS and not isinstance(right, dict))
    sign = "" if op == "in" or (op == "==" and not binary) else f"{op} "
    said = _set(right, keys) if is_named(right, "set") else _expression(right, keys[0])
    return f"{_expression(left)} {sign}{said}"


def _masked(left: Json, op: str, right: Json) -> str:
    """Return bits under a mask of words as nft writes them (`tcp flags syn / syn,ack`), "" for other matches."""
    name, content = named(left)
    operands = items(content)
    words = operands[1]
    if name != "&" or not isinstance(words, list) or op not in ("==", "!="):
        return ""
    sign = "!= " if op == "!=" else ""
    return f"{_expression(operands[0])} {sign}{_expression(right)} / {_expression(words)}"


def _set(value: Json, keys: list[str]) -> str:
    return f"{{ {', '.join(_element(each, keys) for each in items(fields(value)['set']))} }}"


def _element(value: Json, keys: list[str], data_key: str = "") -> str:
    if isinstance(value, list):
        key, data = pair(value)
        return f"{_element(key, keys)} : {_data(data, data_key)}"
    if is_named(value, "elem"):
        inner = fields(fields(value)["elem"])
        comment = f' comment "{inner["comment"]}"' if "comment" in inner else ""
        return _element(inner.get("val"), keys) + comment
    if is_named(value, "concat"):
        parts = items(fields(value)["concat"])
        return " . ".join(_expression(part, key) for part, key in zip(parts, [*keys, *[""] * len(parts)], strict=False))
    return _expression(value, keys[0] if keys else "")


def _data(value: Json, key: str) -> str:
    return _statement(value) if is_named(value, *VERDICTS) else _expression(value, key)


def _map(content: Json, data_key: str, word: str) -> str:
    given = fields(content)
    key, data = given.get("key"), given.get("data")
    keys = [_key(part) for part in items(fields(key)["concat"])] if is_named(key, "concat") else [_key(key)]
    if isinstance(data, str):
        said = data
    else:
        said = f"{{ {', '.join(_element(each, keys, data_key) for each in items(fields(data).get('set', [])))} }}"
    return f"{_expression(key)} {word} {said}"


def _payload(content: Json) -> str:
    given = fields(content)
    if "base" in given:
        return f"@{given['base']},{given.get('offset')},{given.get('len')}"
    return f"{given.get('protocol')} {given.get('field')}"


def _meta(content: Json) -> str:
    key = text(content, "key")
    return key if key in BARE else f"meta {key}"


def _ct(content: Json) -> str:
    given = fields(content)
    words = ("ct", given.get("dir"), given.get("family"), given.get("key"))
    return " ".join(str(word) for word in words if word)


def _fib(content: Json) -> str:
    given = fields(content)
    return f"fib {' . '.join(text(flag) for flag in items(given.get('flags', [])))} {given.get('result')}"


def _numgen(content: Json) -> str:
    given = fields(content)
    return f"numgen {given.get('mode')} mod {given.get('mod')}{_offset(given)}"


def _hash(content: Json) -> str:
    given = fields(content)
    seed = f" seed 0x{given['seed']:x}" if isinstance(given.get("seed"), int) else ""
    inner = _expression(given["expr"]) + " " if "expr" in given else ""
    return f"{'jhash' if inner else 'symhash'} {inner}mod {given.get('mod')}{seed}{_offset(given)}"


def _offset(given: Mapping[str, Json]) -> str:
    return f" offset {given['offset']}" if given.get("offset") else ""


def _option(header: str) -> Callable[[Json, str], str]:
    def write(content: Json, _: str) -> str:
        given = fields(content)
        return " ".join(str(word) for word in (header, given.get("name"), given.get("field")) if word)

    return write


EXPRESSIONS: Mapping[str, Callable[[Json, str], str]] = {
    "payload": lambda content, _: _payload(content),
    "meta": lambda content, _: _meta(content),
    "ct": lambda content, _: _ct(content),
    "fib": lambda content, _: _fib(content),
    "rt": lambda content, _: " ".join(
        str(word) for word in ("rt", fields(content).get("family"), fields(content).get("key")) if word
    ),
    "socket": lambda content, _: f"socket {text(content, 'key')}",
    "numgen": lambda content, _: _numgen(content),
    "jhash": lambda content, _: _hash(content),
    "symhash": lambda content, _: _hash(content),
    "concat": lambda content, _: " . ".join(_expression(part) for part in items(content)),
    "set": lambda content, key: _set({"set": content}, [key]),
    "map": lambda content, key: _map(content, key, "map"),
    "range": lambda content, key: "-".join(_expression(end, key) for end in pair(content)),
    "prefix": lambda content, _: f"{fields(content).get('addr')}/{fields(content).get('len')}",
    "elem": lambda content, key: _element({"elem": content}, [key]),
    "exthdr": _option("exthdr"),
    "tcp option": _option("tcp option"),
    "ip option": _option("ip option"),
}


def _mangle(content: Json) -> str:
    given = fields(content)
    key = given.get("key")
    return f"{_expression(key)} set {_expression(given.get('value'), _key(key))}"


def _limit(content: Json) -> str:
    if isinstance(content, str) or is_named(content, "map"):
        return _named("limit")(content)
    given = fields(content)
    unit = f" {given['rate_unit']}" if "rate_unit" in given else ""
    burst = f" burst {given['burst']} packets" if given.get("burst") not in (None, 0, 5) else ""
    return f"limit rate {'over ' if given.get('inv') else ''}{given.get('rate')}{unit}/{given.get('per')}{burst}"


def _log(content: Json) -> str:
    words = []
    for name, value in fields(content).items():
        words.append(f'{name} "{value}"' if name == "prefix" else f"{name} {_expression(value)}")
    return " ".join(("log", *words))


def _nat(name: str) -> Writer:
    def write(content: Json) -> str:
        given = fields(content)
        address, port = given.get("addr"), given.get("port")
        said = _expression(address)
        if port is not None:
            said = f"[{said}]" if ":" in said else said
            said += f":{_expression(port)}"
        words = [name]
        if address is not None and "family" in given:
            words.append(text(given, "family"))
        if "type_flags" in given:
            words.append(text(given, "type_flags") if isinstance(given["type_flags"], str) else "")
        if said:
            words += ["to", said]
        flags = given.get("flags")
        if flags is not None and flags != "netmap":
            words.append(",".join(text(flag) for flag in items(flags)))
        return " ".join(word for word in words if word)

    return write


def _reject(content: Json) -> str:
    kind, code = text(content, "type", ""), text(content, "expr", "")
    if not kind or (kind == "icmpx" and code == "port-unreachable"):
        return "reject"
    return f"reject with {kind} {code}".rstrip()


def _dynamic(content: Json) -> str:
    given = fields(content)
    limits = "".join(f" {_statement(each)}" for each in items(given.get("stmt", [])))
    return f"{given.get('op')} {given.get('set')} {{ {_element(given.get('elem'), [])}{limits} }}"


def _named(word: str) -> Writer:
    def write(content: Json) -> str:
        if is_named(content, "map"):
            return f"{word} name {_map(fields(content)['map'], 'helper', 'map')}"
        return f'{word} name "{content}"' if isinstance(content, str) else word

    return write


def _amount(content: Json) -> str:
    if isinstance(content, str):
        return f'quota name "{content}"'
    given = fields(content)
    return f"quota {'over ' if given.get('inv') else ''}{given.get('val')} {given.get('val_unit')}"


def _count(content: Json) -> str:
    return f"ct count {'over ' if fields(content).get('inv') else ''}{fields(content).get('val')}"


USUAL_REJECT: Mapping[str, Json] = {
    "ip": {"reject": {"type": "icmp", "expr": "port-unreachable"}},
    "ip6": {"reject": {"type": "icmpv6", "expr": "port-unreachable"}},
}
"""What a bare `reject` means in the tables of one family."""

VERDICTS = ("accept", "drop", "return", "continue", "jump", "goto")

STATEMENTS: Mapping[str, Writer] = {
    **{word: lambda _, word=word: word for word in ("accept", "drop", "return", "continue", "notrack")},  # type: ignore[misc]  # a default holds the word
    "jump": lambda content: f"jump {text(content, 'target')}",
    "goto": lambda content: f"goto {text(content, 'target')}",
    "match": _match,
    "vmap": lambda content: _map(content, "", "vmap"),
    "counter": _named("counter"),
    "mangle": _mangle,
    "limit": _limit,
    "quota": _amount,
    "ct count": _count,
    "log": _log,
    "snat": _nat("snat"),
    "dnat": _nat("dnat"),
    "masquerade": _nat("masquerade"),
    "redirect": _nat("redirect"),
    "tproxy": _nat("tproxy"),
    "reject": _reject,
    "set": _dynamic,
    "flow": lambda content: f"flow add {text(content, 'flowtable', '')}",
    "ct helper": lambda content: f'ct helper set "{content}"',
    "queue": lambda content: " ".join(
        ("queue", *(f"{name} {_expression(value)}" for name, value in fields(content).items()))
    ),
    "xt": lambda content: f'xt {text(content, "type", "")} "{text(content, "name", "")}"',
}
