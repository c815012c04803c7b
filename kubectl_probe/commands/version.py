"""`kubectl-probe version`: which version is this?"""

from typing import Annotated

import typer

from kubectl_probe.output import Format, say
from kubectl_probe.versions import version_text


def version(output: Annotated[Format, typer.Option("--output", "-o", help="How to print it.")] = Format.TEXT) -> int:
    """Print the version of this program.

    \b
    Example:
      kubectl-probe version -o json
    """
    say(version_text(output))
    return 0
