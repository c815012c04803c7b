"""What each step of a diagnosis does: here, and only here, what reads the world and what thinks about it meet.

A function takes the parameters of its spec and the context, leaves what is large in the blob store, and returns the digests.
Running one twice leaves the same blobs (but for collecting from a live source, where the world may have changed). The parts
are imported where they are used: a worker that only collects never loads the simulator.
"""

from collections.abc import Mapping

from tasks.skoop import specs
from tasks.skoop.jobs.collecting import assemble, collect, resolve
from tasks.skoop.jobs.judging import assert_infra, diagnose, simulate_plugin
from tasks.skoop.jobs.reporting import explain, report
from tasks.skoop.specs import AnyBinding, Binding, table

JOBS: Mapping[str, AnyBinding] = table(
    Binding(specs.RESOLVE, resolve),
    Binding(specs.COLLECT, collect),
    Binding(specs.ASSEMBLE, assemble),
    Binding(specs.SIMULATE_PLUGIN, simulate_plugin),
    Binding(specs.DIAGNOSE, diagnose),
    Binding(specs.ASSERT_INFRA, assert_infra),
    Binding(specs.EXPLAIN, explain),
    Binding(specs.REPORT, report),
)
"""Every step of a diagnosis with its function."""
