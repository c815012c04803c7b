"""How much of a walk is told? (Apart from the rest, so that a command line can offer the choice without loading a report.)"""

from enum import StrEnum


class Depth(StrEnum):
    """MINIMAL: the hops and the end. SUMMARY: what was done to the packet at each hop. DETAILED: every step and packet."""

    MINIMAL = "minimal"
    SUMMARY = "summary"
    DETAILED = "detailed"
