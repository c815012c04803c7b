"""What can go wrong with a lab itself (never: what is wrong inside its networks)."""

from tasks.skoop.errors import KubeprobeError, RequestError


class LabUnavailable(KubeprobeError):
    """No lab can run on this machine."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"this machine cannot run a lab: {reason}")


class LabFailed(KubeprobeError):
    """Building, changing or asking a lab failed half-way."""

    def __init__(self, what: str, detail: str) -> None:
        self.what = what
        self.detail = detail
        super().__init__(f"{what}: {detail}")


class NoSuchLab(RequestError):
    """There is no running lab of that name."""

    def __init__(self, name: str, running: tuple[str, ...]) -> None:
        self.name = name
        self.running = running
        hint = f"running: {', '.join(running)}" if running else "none is running; start one with `lab up flannel-vxlan`"
        super().__init__(f"no lab named {name!r} ({hint})")


class LabExists(RequestError):
    """A lab of that name runs already."""

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        super().__init__(
            f"a lab named {name!r} ({kind}) is running already; end it with `lab down`, or choose another name"
        )


class BadRequest(RequestError):
    """A name, kind, fault or option that this lab does not have."""

    def __init__(self, what: str, given: str, known: tuple[str, ...] = ()) -> None:
        self.what = what
        self.given = given
        self.known = known
        hint = f"; known: {', '.join(known)}" if known else ""
        super().__init__(f"{what} {given!r} is not possible here{hint}")
