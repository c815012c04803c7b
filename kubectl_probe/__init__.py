"""The command line, `kubectl-probe` (and so `kubectl probe`): a thin face on workflows, tasks and lab."""

__version__ = "0.1.0"
