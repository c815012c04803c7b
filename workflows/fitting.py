"""Does a value of this type fit a field of that type? Asked once for every edge of a DAG, when it is built.

Types are those that pydantic models of messages use: plain classes, `Annotated`, unions, `Literal`, and lists or tuples of one
element type. Values travel as JSON, so a list fits a tuple and an int a float; text that must follow a pattern (`Annotated`)
takes only text that already promises the same.
"""

import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Optional, TypeAlias, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

TypeForm: TypeAlias = object
"""A type as an annotation writes it: a class, or a form such as `tuple[str, ...]` or `int | None`."""

_SEQUENCES = (tuple, list, Sequence)


def field_types(model: type[BaseModel]) -> dict[str, TypeForm]:
    """Return the types of a model's fields, with their annotations."""
    hints = get_type_hints(model, include_extras=True)
    return {name: hints[name] for name in model.model_fields}


def required_fields(model: type[BaseModel]) -> set[str]:
    """Return the names of fields without default."""
    return {name for name, info in model.model_fields.items() if info.is_required()}


def fits(given: TypeForm, wanted: TypeForm) -> bool:
    """Say whether every value of type `given` is one of type `wanted`."""
    if wanted is Any or given == wanted:
        return True
    if _is_union(given):
        return all(fits(member, wanted) for member in get_args(given))
    if _is_union(wanted):
        return any(fits(given, member) for member in get_args(wanted))
    if get_origin(wanted) is Annotated:
        base, *marks = get_args(wanted)
        return get_origin(given) is Annotated and list(get_args(given)[1:]) == marks and fits(get_args(given)[0], base)
    if get_origin(given) is Annotated:
        return fits(get_args(given)[0], wanted)
    if get_origin(wanted) is Literal or get_origin(given) is Literal:
        return _literal_fits(given, wanted)
    if (element := element_type(given)) is not None:
        inner = element_type(wanted)
        return inner is not None and fits(element, inner)
    return (
        isinstance(given, type)
        and isinstance(wanted, type)
        and (issubclass(given, wanted) or (given, wanted) == (int, float))
    )


def element_type(listing: TypeForm) -> TypeForm | None:
    """Return what `list[X]`, `tuple[X, ...]` or `Sequence[X]` (or one of them or None) holds; None if it is no such list."""
    if _is_union(listing):
        rest = [member for member in get_args(listing) if member is not type(None)]
        return element_type(rest[0]) if len(rest) == 1 else None
    if get_origin(listing) not in _SEQUENCES:
        return None
    element: tuple[TypeForm, ...] = get_args(listing)
    if len(element) == 1 or element[1:] == (...,):
        return element[0]
    return None


def or_none(kind: TypeForm) -> TypeForm:
    """Return the type with None added."""
    return Optional[kind]  # noqa: UP045  # `|` is not defined for every form


def list_of(kind: TypeForm) -> TypeForm:
    """Return the type of a list of it."""
    return tuple[kind, ...]  # type: ignore[valid-type]  # the element is known when the DAG is built, not to mypy


def show(kind: TypeForm) -> str:
    """Return a short name of a type for a message."""
    return kind.__name__ if isinstance(kind, type) and get_origin(kind) is None else str(kind).replace("typing.", "")


def _is_union(kind: TypeForm) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _literal_fits(given: TypeForm, wanted: TypeForm) -> bool:
    if get_origin(given) is not Literal:
        return False
    if get_origin(wanted) is Literal:
        return set(get_args(given)) <= set(get_args(wanted))
    return isinstance(wanted, type) and all(isinstance(value, wanted) for value in get_args(given))
