"""The one base of errors that mean: the input or the world failed us (not the network under diagnosis, not a bug)."""


class KubeprobeError(Exception):
    """Base of every expected error. The message is for a person and says what to do next; `exit_status` is the CLI's.

    2: the request was wrong (a name, an option, a file that is not what it should be). 3: the diagnosis could not be made
    (a cluster, a namespace, a disk failed us).
    """

    exit_status = 3


class RequestError(KubeprobeError):
    """What was asked for cannot be understood or does not exist."""

    exit_status = 2
