"""Expected texts as files: compared, or with KUBEPROBE_REWRITE=1 in the environment written anew (the diff is then reviewed)."""

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"


def expect(name: str, text: str) -> None:
    """Assert that the text is what golden/NAME holds."""
    path = FOLDER / name
    if os.environ.get("KUBEPROBE_REWRITE") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.exists(), f"{path.name} is not there; run again with KUBEPROBE_REWRITE=1"
    assert text == path.read_text()
