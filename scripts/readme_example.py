"""The example in README: what the program really prints about the snapshot that it carries."""

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

BEGIN, END = "<!-- example: made by `make gen` -->", "<!-- end of the example -->"


def with_example(readme: str, snapshot: Path) -> str:
    """Return the text with what stands between the markers made anew. The snapshot's path is relative to the repository."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    words = ["diagnose", "--snapshot", str(snapshot), "--from", "shop/client-74cdc48d-9nk66", "--to", "svc/shop/web:80"]
    return f"{before}{BEGIN}\n\n```\n$ kubectl-probe {' '.join(words)}\n{_output(words)}```\n\n{END}{after}"


def _output(words: list[str]) -> str:
    from kubectl_probe.main import main

    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        main(words)
    return out.getvalue()
