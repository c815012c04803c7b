"""What the shared fixtures give."""

import os
from typing import Protocol

import pytest

from lab.cluster import Lab
from lab.plan import Backend, Kind
from lab.requirements import unavailable_because


class Labs(Protocol):
    """Gives the running lab of a kind and back end."""

    def __call__(self, kind: Kind = Kind.FLANNEL_VXLAN, backend: Backend = Backend.LEGACY) -> Lab: ...


def need_lab() -> None:
    """Skip, by name, where no lab can run in this process."""
    if os.geteuid() != 0:
        pytest.skip("labs inside the test's own process need root")
    if reason := unavailable_because():
        pytest.skip(f"no lab here: {reason}")
