"""How is one of many answers told in one line?

As JSON: the published document without its steps, nodes and links, beside the `pair` as it was asked. As text: the headline,
with the place where the likeliest trouble is.
"""

from collections.abc import Mapping

import msgspec

from tasks.skoop.model.diagnosis import Diagnosis
from tasks.skoop.report.document import Extent, render
from tasks.skoop.report.verdict import Judgement, ending_walk, headline, judge, told_outcome
from tasks.skoop.report.words import netns_words, place_words


def line_json(pair: Mapping[str, object], diagnosis: Diagnosis) -> bytes:
    """Return the document with `pair` as its first member, without the line's end."""
    return b'{"pair":' + msgspec.json.encode(pair) + b"," + render(diagnosis, Extent.ANSWER)[1:]


def line_text(diagnosis: Diagnosis) -> str:
    """Return the headline, and where it goes wrong if it does."""
    line = headline(diagnosis)
    told = told_outcome(diagnosis.outcomes)
    if told is None or judge(diagnosis) is Judgement.WORKS:
        return line
    place = ending_walk(told).place
    return line if place is None else f"{line} (on {netns_words(place.netns)} at {place_words(place)})"
