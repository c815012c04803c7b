"""What the shared fixtures give."""

from typing import Protocol

from lab.cluster import Lab
from lab.plan import Backend, Kind


class Labs(Protocol):
    """Gives the running lab of a kind and back end."""

    def __call__(self, kind: Kind = Kind.FLANNEL_VXLAN, backend: Backend = Backend.LEGACY) -> Lab: ...
