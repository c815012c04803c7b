"""What a piece of work is given beside its parameters: settings, the blob store, what this process remembers, who it works for.

A `Context` is built once, where the program starts, and passed down; nothing looks it up. `SECTIONS` is the whole table of
settings: each section is a model that the part it configures declares, and the command line's options are made from it.
What is given here is how to work, never what the world is like: the state of the network comes in snapshots.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from threading import Lock
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.skoop.errors import RequestError

T = TypeVar("T")


class Section(BaseModel):
    """Base of the settings of one part: immutable, checked when built."""

    model_config = ConfigDict(frozen=True, extra="forbid")


S = TypeVar("S", bound=Section)


class CollectSettings(Section):
    """How collecting goes about its work."""

    workers: int = Field(
        default=0, ge=0, le=256, description="collecting processes; 0: one for each processor, at most 8"
    )


class DiagnoseSettings(Section):
    """How questions are put to the diagnostor."""

    shard: int = Field(default=64, ge=1, le=10_000, description="questions that one step answers")


SECTIONS: Mapping[str, type[Section]] = MappingProxyType({"collect": CollectSettings, "diagnose": DiagnoseSettings})
"""Every section of settings, by name."""


class Option(NamedTuple):
    """One setting as an option of a command: `collect.workers`, `--collect-workers`."""

    key: str
    flag: str
    type: type
    default: object
    help: str


def options(sections: Mapping[str, type[Section]] = SECTIONS) -> Iterator[Option]:
    """Yield every setting as an option, section by section."""
    for section, model in sections.items():
        for name, info in model.model_fields.items():
            kind = info.annotation if isinstance(info.annotation, type) else str
            flag = f"--{section}-{name}".replace("_", "-")
            yield Option(f"{section}.{name}", flag, kind, info.default, info.description or "")


class SettingError(RequestError):
    """A setting does not exist or cannot have this value."""

    def __init__(self, key: str, given: object, problem: str) -> None:
        self.key = key
        self.given = given
        self.problem = problem
        super().__init__(f"setting {key}={given!r}: {problem}")


@dataclass(frozen=True, slots=True)
class Settings:
    """All sections with their values."""

    sections: Mapping[str, Section]

    @classmethod
    def build(cls, values: Mapping[str, object] | None = None) -> "Settings":
        """Return the settings with the values given (by `section.name`) and defaults for the rest. Raises SettingError."""
        wanted: dict[str, dict[str, object]] = {section: {} for section in SECTIONS}
        for key, value in (values or {}).items():
            section, _, name = key.partition(".")
            if section not in SECTIONS or name not in SECTIONS[section].model_fields:
                raise SettingError(key, value, f"there are {', '.join(option.key for option in options())}")
            wanted[section][name] = value
        built: dict[str, Section] = {}
        for section, model in SECTIONS.items():
            try:
                built[section] = model.model_validate(wanted[section])
            except ValidationError as error:
                first = error.errors()[0]
                raise SettingError(f"{section}.{first['loc'][0]}", first["input"], first["msg"]) from None
        return cls(MappingProxyType(built))

    def of(self, section: type[S]) -> S:
        """Return one section, by its type."""
        return next(value for value in self.sections.values() if isinstance(value, section))


class Blobs(Protocol):
    """Where large values are kept, by the digest of their content (`sha256:…`)."""

    def put(self, content: bytes) -> str:
        """Store the content, if it is not there already, and return its digest."""
        ...

    def get(self, digest: str) -> bytes:
        """Return the content of that digest."""
        ...


class StepHandle(Protocol):
    """A running step's line to the run it belongs to."""

    def progress(self, percent: int, message: str = "") -> None:
        """Report how far the step is: 0 to 100, true and not guessed. Raises StepStopped if it should not go on."""
        ...


class Silent:
    """The handle of work that nobody watches."""

    def progress(self, percent: int, message: str = "") -> None:
        """Take the report and do nothing with it."""


class Memory:
    """Values that this process has made or read before, by key: the last used, up to a total weight in bytes.

    Two threads that want the same value at once: one makes it, the other waits for it.
    """

    def __init__(self, limit_bytes: int = 192 << 20) -> None:
        self._limit = limit_bytes
        self._total = 0
        self._values: OrderedDict[object, tuple[object, int]] = OrderedDict()
        self._making: dict[object, Lock] = {}
        self._lock = Lock()

    def recall(self, key: object, make: Callable[[], tuple[T, int]]) -> T:
        """Return the value of that key; where it is not known, `make` gives it with its weight in bytes."""
        with self._lock:
            if key in self._values:
                known: T = self._touch(key)
                return known
            making = self._making.setdefault(key, Lock())
        with making:
            with self._lock:
                if key in self._values:
                    meanwhile: T = self._touch(key)
                    return meanwhile
            try:
                value, weight = make()
                self.keep(key, value, weight)
            finally:
                with self._lock:
                    self._making.pop(key, None)
        return value

    def keep(self, key: object, value: object, weight: int) -> None:
        """Remember a value; the longest unused ones go to make room for it."""
        with self._lock:
            self._total += weight - self._values.pop(key, (None, 0))[1]
            self._values[key] = (value, weight)
            while self._total > self._limit and len(self._values) > 1:
                self._total -= self._values.popitem(last=False)[1][1]

    def _touch(self, key: object) -> Any:  # noqa: ANN401  # the key says the type
        self._values.move_to_end(key)
        return self._values[key][0]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """For which run, step and person the work is done; empty outside of runs."""

    run_id: str = ""
    step: str = ""
    asked_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What is passed down to every piece of work."""

    blobs: Blobs
    settings: Settings = field(default_factory=Settings.build)
    memory: Memory = field(default_factory=Memory)
    run: RunIdentity = RunIdentity()
    step: StepHandle = field(default_factory=Silent)

    def for_step(self, run: RunIdentity, step: StepHandle) -> "Context":
        """Return the context of one step of a run."""
        return replace(self, run=run, step=step)

    def put(self, value: msgspec.Struct) -> str:
        """Store a msgspec struct as JSON and return its digest; this process remembers it."""
        content = msgspec.json.encode(value)
        digest = self.blobs.put(content)
        self.memory.keep((digest, type(value)), value, len(content))
        return digest

    def get(self, digest: str, kind: type[T]) -> T:
        """Return a stored value of that type. Raises ValueMismatch if the blob holds something else."""

        def read() -> tuple[T, int]:
            content = self.blobs.get(digest)
            try:
                return msgspec.json.decode(content, type=kind), len(content)
            except msgspec.MsgspecError as error:
                raise ValueMismatch(digest, str(kind), str(error)) from error

        return self.memory.recall((digest, kind), read)


class ValueMismatch(RequestError):
    """A blob does not hold what it should: another version wrote it, or the digest is of something else."""

    def __init__(self, digest: str, wanted: str, problem: str) -> None:
        self.digest = digest
        self.wanted = wanted
        self.problem = problem
        super().__init__(f"blob {digest} is no {wanted} ({problem}): run again from the start")
