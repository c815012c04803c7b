"""The shapes of nft's JSON: values as they are decoded, and how to take one apart.

Every accessor raises NotUnderstood where the shape is another one than expected: a listing of a later version may say more.
"""

from typing import Union

from msgspec.json import encode

from tasks.skoop.netstack.xtables.truth import NotUnderstood

Json = Union[None, bool, int, float, str, list["Json"], dict[str, "Json"]]  # noqa: UP007 (recursive aliases need it)


def compact(value: Json) -> str:
    """Return the JSON text of a value, without spaces."""
    return encode(value).decode()


def fields(value: Json) -> dict[str, Json]:
    """Return an object's fields; nft prints `null` for a statement without any."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise NotUnderstood(compact(value))
    return value


def items(value: Json) -> list[Json]:
    """Return the items of a list; a single one stands for a list of one."""
    return value if isinstance(value, list) else [value]


def pair(value: Json) -> tuple[Json, Json]:
    """Return the two items of a list of two."""
    if not isinstance(value, list) or len(value) != 2:
        raise NotUnderstood(compact(value))
    return value[0], value[1]


def named(value: Json) -> tuple[str, Json]:
    """Return (name, content) of an object with one field, which is how expressions and statements are written."""
    if not isinstance(value, dict) or len(value) != 1:
        raise NotUnderstood(compact(value))
    ((name, content),) = value.items()
    return name, content


def is_named(value: Json, *names: str) -> bool:
    """Say whether the value is an object of one field with one of these names."""
    return isinstance(value, dict) and len(value) == 1 and next(iter(value)) in names


def text(value: Json, name: str = "", default: str | None = None) -> str:
    """Return a string, or the string field `name` of an object (`default` where it is absent)."""
    if name:
        value = fields(value).get(name, default)
    if not isinstance(value, str):
        raise NotUnderstood(compact(value))
    return value


def whole(value: Json, name: str = "", default: int | None = None) -> int:
    """Return a whole number, or that field `name` of an object (`default` where it is absent)."""
    if name:
        value = fields(value).get(name, default)
    if not isinstance(value, int):
        raise NotUnderstood(compact(value))
    return int(value)
