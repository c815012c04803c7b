"""The managed cluster's side: an operator for Probe and ProbeStatus, the report endpoint, heartbeats; works without a master.

Nothing is here yet: the package holds its place, so that the layout and the import contracts stand from the first version.
"""
