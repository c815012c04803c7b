"""The DAGs, one short file each."""

from collections.abc import Mapping

from workflows.dag import Dag
from workflows.dags.diagnose import DAG as DIAGNOSE

DAGS: Mapping[str, Dag] = {dag.name: dag for dag in (DIAGNOSE,)}
"""Every DAG, by name."""
