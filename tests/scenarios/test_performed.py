"""What the simulator says of each scenario is what the kernel does: outcome, errors, addresses, packets, rules that were hit."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.requirements import unavailable_because
from tests.scenarios.performed import Performed
from tests.scenarios.results import difference
from tests.scenarios.scenario import load, parse
from tests.scenarios.simulated import Simulated
from tests.scenarios.texts import CASES, FOLDER

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces"),
]
AT_ONCE = 8
PATIENCE_S = (0.12, 0.5)
"""A second, longer try tells a packet that came late on a busy machine from one that was lost."""


@pytest.fixture(scope="module", autouse=True)
def _able() -> None:
    if reason := unavailable_because():
        pytest.skip(reason)


Comparison = tuple[list[str], list[str]]
"""What differed, and what stood there that the simulator was not told of."""


@pytest.fixture(scope="module")
def compared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[Path, Future[Comparison]]]:
    """Carry out all scenarios that are asked for, some at a time: most of the time of each is waiting."""
    wanted = [item.callspec.params["path"] for item in request.session.items if _is_case(item)]  # type: ignore[attr-defined]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {path: pool.submit(_compare, path, tmp_path_factory.mktemp("lab")) for path in wanted}
        pool.shutdown(cancel_futures=True)


def _is_case(item: pytest.Item) -> bool:
    return getattr(item, "originalname", "") == test_the_kernel_does_as_foretold.__name__


def _compare(path: Path, folder: Path) -> Comparison:
    scenario = load(path)
    foretold = Simulated().run(scenario)
    wrong: list[str] = []
    surprises: list[str] = []
    for patience_s in PATIENCE_S:
        kernel = Performed(folder, patience_s=patience_s)
        found = kernel.run(scenario)
        surprises = kernel.surprises
        wrong = [
            f"{trial.what}: {said}"
            for trial, told, seen in zip(scenario.trials, foretold, found, strict=True)
            if (said := difference(trial, told, seen))
        ]
        if not wrong:
            break
    return wrong, surprises


@pytest.mark.parametrize("path", CASES, ids=lambda path: str(path.relative_to(FOLDER).with_suffix("")))
def test_the_kernel_does_as_foretold(path: Path, compared: Mapping[Path, Future[Comparison]]) -> None:
    wrong, surprises = compared[path].result()
    assert not surprises, "the state that the simulator is given is not what the kernel makes of the file"
    assert not wrong


DROPPED = """
veth a:eth0 b:eth0
netns a
  link eth0 10.1.0.1/24
netns b
  link eth0 10.1.0.2/24
  iptables -A INPUT -p udp -m udp --dport 53 -j DROP
  listen udp 53
connect a udp 10.1.0.2:53
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        pytest.param("-j DROP", "-j ACCEPT", "kernel: connected", id="another verdict"),
        pytest.param("-j DROP", "-j REJECT --reject-with icmp-host-unreachable", "kernel: unreachable", id="an error"),
        pytest.param(
            "-A INPUT -p udp -m udp", "-t mangle -A INPUT -p udp -m udp", "foretold but not hit", id="a place"
        ),
        pytest.param("10.1.0.1/24", "10.1.0.9/24", "kernel: timeout from 10.1.0.9", id="another source"),
    ],
)
def test_a_difference_is_noticed(old: str, new: str, said: str, tmp_path: Path) -> None:
    told, other = parse(DROPPED, "told"), parse(DROPPED.replace(old, new), "other")
    (foretold,), (found,) = Simulated().run(told), Performed(tmp_path).run(other)
    assert said in difference(told.trials[0], foretold, found)


def test_a_state_that_is_not_the_kernels_is_noticed(tmp_path: Path) -> None:
    kernel = Performed(tmp_path)
    kernel.run(parse("netns a\n  iptables -A INPUT -j DROP -p tcp\n  link lo up", "odd"))
    assert not kernel.surprises
    kernel.run(parse("netns a\n  iptables -A INPUT -m tcp -p tcp -j ACCEPT -s 10.0.0.1", "odd"))
    assert any("the kernel has" in surprise for surprise in kernel.surprises)
