"""What runs: the diagnosis (`tasks.skoop`) and the checks (`tasks.probes`)."""
