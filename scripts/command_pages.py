"""The reference of the command line, in Markdown, from the commands' own help."""

import io
from contextlib import redirect_stdout

INTRODUCTION = """# The command line

Every command as its `--help` tells it. The exit status is the same for all of them:

| status | meaning |
|---|---|
| 0 | nothing is wrong (or: done) |
| 1 | a problem was found (`snapshot diff`: they differ) |
| 2 | the command was wrong: an option, a name, a file that is not what it should be |
| 3 | it could not be done: a cluster, a namespace, a disk failed, or what is needed to say is missing |
| 130 | interrupted |

With `-o json` standard output holds JSON and nothing else: one document per answer and line (schema:
[diagnosis.schema.json](diagnosis.schema.json)); an error is one JSON object on standard error:
`{"error": {"type": …, "message": …, "exit_status": …}}`.
"""

COMMANDS = (
    (),
    ("demo",),
    ("diagnose",),
    ("collect",),
    ("snapshot", "show"),
    ("snapshot", "diff"),
    ("submit", "diagnose"),
    ("lab",),
    ("lab", "up"),
    ("lab", "down"),
    ("lab", "status"),
    ("lab", "faults"),
    ("lab", "break"),
    ("lab", "mend"),
    ("lab", "probe"),
    ("version",),
)


def reference() -> str:
    """Return the whole page."""
    parts = [INTRODUCTION]
    for words in COMMANDS:
        title = " ".join(("kubectl-probe", *words))
        parts.append(f"## {title}\n\n```\n{help_text(words)}\n```\n")
    return "\n".join(parts)


def help_text(words: tuple[str, ...]) -> str:
    """Return what `--help` prints for a command."""
    from kubectl_probe.main import main

    out = io.StringIO()
    with redirect_stdout(out):
        status = main([*words, "--help"])
    if status:
        raise SystemExit(f"there is no help for {' '.join(words)}")
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())
