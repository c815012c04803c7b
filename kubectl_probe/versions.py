"""What does `version` print? Apart from its command, since it is answered without loading a parser: scripts ask it often."""

import json
import platform
from collections.abc import Mapping, Sequence

from kubectl_probe import __version__
from kubectl_probe.output import Format

PLAIN_FORMS: Mapping[tuple[str, ...], Format] = {
    ("version",): Format.TEXT,
    ("--version",): Format.TEXT,
    ("version", "-o", "text"): Format.TEXT,
    ("version", "-o", "json"): Format.JSON,
    ("version", "--output", "json"): Format.JSON,
}
"""Command lines that are answered at once; any other is for the parser."""


def version_text(output: Format) -> str:
    """Return the version, in words or as JSON."""
    if output is Format.JSON:
        system = platform.system().lower()
        return json.dumps({"version": __version__, "python": platform.python_version(), "platform": system})
    return f"kubectl-probe {__version__} (Python {platform.python_version()}, {platform.system()} {platform.machine()})"


def answer(words: Sequence[str]) -> str | None:
    """Return what to print if the command line asks for the version in one of its plain forms, else None."""
    asked = PLAIN_FORMS.get(tuple(words))
    return None if asked is None else version_text(asked)
