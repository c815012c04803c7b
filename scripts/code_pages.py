"""The reference of all findings, in Markdown, from the table of codes: a page for each area, a section for each code."""

from collections.abc import Iterator

from tasks.skoop.assertions.codes import AREAS, Code


def pages() -> Iterator[tuple[str, str]]:
    """Yield each area's page as (name without suffix, text)."""
    for area, codes in AREAS.items():
        sections = "\n".join(_section(code) for code in codes)
        yield prefix(codes), f"# {area} ({prefix(codes)})\n\n{sections}"


def index_page() -> str:
    """Return the page that lists all codes."""
    lines = [
        "# Codes of findings",
        "",
        "A finding's code is stable: it never comes to mean something else. The level is the usual one.",
        "",
        "| code | level | finding |",
        "|---|---|---|",
    ]
    for codes in AREAS.values():
        lines += [
            f"| [{code.code}]({prefix(codes)}.md#{code.code.lower()}) | {code.level} | {code.title} |" for code in codes
        ]
    return "\n".join(lines) + "\n"


def prefix(codes: tuple[Code, ...]) -> str:
    """Return what the codes of an area begin with: `KP-ROUTE`."""
    return codes[0].code.rpartition("-")[0]


def _section(code: Code) -> str:
    return f"## {code.code}\n\n**{code.title}** (usually {code.level})\n\n{code.meaning}\n\nWhat to do: {code.todo}\n"
