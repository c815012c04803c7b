"""Looking an element up finds what asking every element would find."""

from hypothesis import given
from hypothesis import strategies as st

from tasks.skoop.netstack.nftables import datatypes as dt
from tasks.skoop.netstack.nftables.elements import Element, Elements, element_of
from tasks.skoop.netstack.nftables.outcomes import HIDDEN, Unsure
from tests.unit.nftables.scene import Json, concat, prefix, span

ports = st.integers(0, 40)
plain = ports.map(lambda port: (port, port, port))
wide = st.tuples(ports, st.integers(1, 9)).map(
    lambda pair: (pair[0], pair[0] + pair[1], span(pair[0], pair[0] + pair[1]))
)


def disjoint(spans: list[tuple[int, int, Json]]) -> list[tuple[int, int, Json]]:
    """Return the spans that overlap none before them: sets have no others."""
    found: list[tuple[int, int, Json]] = []
    for each in spans:
        if all(each[1] < other[0] or each[0] > other[1] for other in found):
            found.append(each)
    return found


@given(st.lists(st.one_of(plain, wide), max_size=12).map(disjoint), st.booleans(), ports)
def test_one_number(spans: list[tuple[int, int, Json]], wildcard: bool, value: int) -> None:
    listed = [element_of([key, n], mapping=True) for n, (_, _, key) in enumerate(spans)]
    if wildcard:
        listed.append(element_of(["*", 99], mapping=True))
    expected = next((n for n, (low, high, _) in enumerate(spans) if low <= value <= high), 99 if wildcard else None)
    found = Elements(listed, (dt.SERVICE,)).find(value)
    assert (found.data if isinstance(found, Element) else None) == expected


boxes = st.tuples(st.one_of(plain, wide), st.one_of(plain, wide), st.one_of(plain, wide))


@given(st.lists(boxes, max_size=8), st.tuples(ports, ports, ports))
def test_concatenations(listed: list[tuple[tuple[int, int, Json], ...]], value: tuple[int, int, int]) -> None:
    elements = Elements(
        [element_of(concat(*(part[2] for part in box)), mapping=False) for box in listed], (dt.SERVICE,) * 3
    )
    inside = [all(low <= part <= high for part, (low, high, _) in zip(value, box, strict=True)) for box in listed]
    assert isinstance(elements.find(value), Element) == any(inside)


@given(st.ip_addresses(v=4), st.integers(0, 32), st.ip_addresses(v=4))
def test_prefixes(net: object, length: int, address: object) -> None:
    low, high = dt.span(prefix(str(net), length), dt.IPV4)
    number = dt.number(str(address), dt.IPV4)
    assert (low <= number <= high) == (number >> (32 - length) == dt.number(str(net), dt.IPV4) >> (32 - length))


@given(st.text("abr", min_size=1, max_size=6), st.text("abr", max_size=3))
def test_names_with_a_wildcard(name: str, head: str) -> None:
    low, high = dt.span(f"{head}*", dt.IFNAME)
    assert (low <= dt.name_number(name) <= high) == name.startswith(head)


def test_what_is_hidden_equals_nothing_and_may_be_in_a_range() -> None:
    exact = Elements([element_of(concat(1, 2), mapping=False)], (dt.SERVICE, dt.SERVICE))
    ranged = Elements([element_of(concat(1, span(2, 9)), mapping=False)], (dt.SERVICE, dt.SERVICE))
    assert exact.find((1, HIDDEN)) is None
    assert isinstance(ranged.find((1, HIDDEN)), Unsure)
    assert ranged.find((2, HIDDEN)) is None
