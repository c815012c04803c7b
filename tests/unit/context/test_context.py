"""The Context: settings that are checked, a memory that is bounded, values by digest."""

import threading

import msgspec
import pytest

from tasks.skoop.context import (
    SECTIONS,
    CollectSettings,
    Context,
    DiagnoseSettings,
    Memory,
    RunIdentity,
    SettingError,
    Settings,
    Silent,
    ValueMismatch,
    options,
)
from workflows.blobs import MemoryBlobs


class Value(msgspec.Struct, frozen=True):
    name: str


class Other(msgspec.Struct, frozen=True):
    number: int


def test_defaults_and_given_values() -> None:
    settings = Settings.build({"diagnose.shard": "16"})
    assert settings.of(DiagnoseSettings).shard == 16
    assert settings.of(CollectSettings) == CollectSettings()


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("diagnose.shards", 3, r"setting diagnose\.shards=3: there are collect\.workers, diagnose\.shard"),
        ("nothing", 3, "setting nothing=3: there are"),
        ("diagnose.shard", "many", r"setting diagnose\.shard='many': .*integer"),
        ("diagnose.shard", 0, r"setting diagnose\.shard=0: .*greater than or equal to 1"),
    ],
)
def test_a_wrong_setting_is_refused(key: str, value: object, problem: str) -> None:
    with pytest.raises(SettingError, match=problem) as caught:
        Settings.build({key: value})
    assert caught.value.exit_status == 2


def test_every_setting_is_an_option_with_help() -> None:
    found = list(options())
    assert [option.key for option in found] == [
        f"{section}.{name}" for section, model in SECTIONS.items() for name in model.model_fields
    ]
    assert all(option.help and option.flag == "--" + option.key.replace(".", "-") for option in found)
    assert (found[0].type, found[0].default) == (int, 0)


def test_context_is_a_value() -> None:
    context = Context(blobs=MemoryBlobs())
    with pytest.raises(AttributeError):
        context.run = RunIdentity()  # type: ignore[misc]
    of_step = context.for_step(RunIdentity(run_id="r", step="s"), Silent())
    assert (of_step.run.run_id, context.run.run_id) == ("r", "")
    assert of_step.memory is context.memory


def test_values_by_digest() -> None:
    blobs = MemoryBlobs()
    digest = Context(blobs=blobs).put(Value("x"))
    assert Context(blobs=blobs).get(digest, Value) == Value("x")
    assert Context(blobs=blobs).put(Value("x")) == digest
    with pytest.raises(ValueMismatch, match=r"is no .*Other"):
        Context(blobs=blobs).get(digest, Other)


def test_memory_makes_a_value_once() -> None:
    memory = Memory()
    made: list[int] = []
    let_go = threading.Event()

    def make() -> tuple[str, int]:
        made.append(1)
        let_go.wait(5)
        return "value", 1

    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(memory.recall("key", make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    let_go.set()
    for thread in threads:
        thread.join()
    assert (found, made) == (["value"] * 4, [1])


def test_memory_forgets_what_was_unused_longest() -> None:
    memory = Memory(limit_bytes=10)
    made: list[str] = []

    def ask(key: str, weight: int = 4) -> None:
        memory.recall(key, lambda: (made.append(key), weight))

    for key in ("a", "b", "a", "c", "a", "b"):
        ask(key)
    assert made == ["a", "b", "c", "b"]


def test_memory_keeps_one_value_however_large() -> None:
    memory = Memory(limit_bytes=1)
    memory.keep("large", "value", 100)
    assert memory.recall("large", lambda: pytest.fail("forgotten")) == "value"


def test_memory_tries_again_after_an_error() -> None:
    memory = Memory()

    def fail() -> tuple[str, int]:
        raise ValueError

    with pytest.raises(ValueError):
        memory.recall("key", fail)
    assert memory.recall("key", lambda: ("value", 1)) == "value"
