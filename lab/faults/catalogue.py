"""Every fault that can be put into a lab, by id."""

from lab.faults import host, links, overlay, rules, services
from lab.faults.fault import Fault

FAULTS: dict[str, Fault] = {
    fault.id: fault
    for fault in sorted(
        (*host.FAULTS, *links.FAULTS, *overlay.FAULTS, *rules.FAULTS, *services.FAULTS),
        key=lambda fault: int(fault.id[1:]),
    )
}
