"""Does a label selector select an object with these labels?

Follows LabelSelector of apimachinery's meta/v1: all expressions must hold; NotIn and DoesNotExist hold where the key is absent
(labels.Requirement.Matches); a selector without expressions selects everything. An operator that is not one of the four, or
labels that could not be read, give no answer rather than a guess.
"""

from msgspec import Struct

from tasks.skoop.policy.certainty import Answer, Unsure, all_of, any_of


class Labels(Struct, frozen=True, kw_only=True):
    """The labels of an object. `gap` says why there may be more than these; "" = these are all."""

    values: dict[str, str] = {}
    gap: str = ""

    def holds(self, key: str, values: tuple[str, ...]) -> Answer:
        """Say whether the label is there with one of these values."""
        found = self.values.get(key)
        return found in values if found is not None else self._absent(key)

    def has(self, key: str) -> Answer:
        """Say whether the label is there."""
        return True if key in self.values else self._absent(key)

    def _absent(self, key: str) -> Answer:
        return Unsure(f"label {key}: {self.gap}") if self.gap else False


class Requirement(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One expression of a label selector."""

    key: str
    operator: str
    values: tuple[str, ...] | None = None

    def holds(self, labels: Labels) -> Answer:
        """Say whether labels meet the requirement."""
        match self.operator:
            case "In":
                return labels.holds(self.key, self.values or ())
            case "NotIn":
                found = labels.holds(self.key, self.values or ())
                return found if isinstance(found, Unsure) else not found
            case "Exists":
                return labels.has(self.key)
            case "DoesNotExist":
                found = labels.has(self.key)
                return found if isinstance(found, Unsure) else not found
            case _:
                return Unsure(f"operator {self.operator!r} of a selector is not known")

    def __str__(self) -> str:
        return " ".join(filter(None, (self.key, self.operator, ",".join(self.values or ()))))


class Selector(Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A label selector; an empty one selects everything."""

    match_labels: dict[str, str] | None = None
    match_expressions: tuple[Requirement, ...] | None = None

    def selects(self, labels: Labels) -> Answer:
        """Say whether the selector selects an object with these labels."""
        wanted = (labels.holds(key, (value,)) for key, value in (self.match_labels or {}).items())
        return all_of((all_of(wanted), all_of(one.holds(labels) for one in self.match_expressions or ())))

    @property
    def selects_everything(self) -> bool:
        """Whether it says nothing."""
        return not self.match_labels and not self.match_expressions

    @property
    def keys(self) -> frozenset[str]:
        """The labels that it looks at."""
        return frozenset(self.match_labels or ()) | {one.key for one in self.match_expressions or ()}

    def __str__(self) -> str:
        parts = [f"{key}={value}" for key, value in (self.match_labels or {}).items()]
        return ", ".join((*parts, *map(str, self.match_expressions or ()))) or "everything"


EVERYTHING = Selector()


def selected_by_any(selectors: tuple[Selector, ...], labels: Labels) -> Answer:
    """Say whether one of several selectors selects."""
    return any_of(selector.selects(labels) for selector in selectors)
