"""Reads the world: a folder of dumps, a topology of network namespaces, or this machine, each into a ClusterState.

`dumps.load_dumps`, `topology.collect_topology`, `host.collect_host`. The last two run collecting processes (`workers`,
`child`) through the `CollectorManager`; what they cannot read is in the state, with the reason.
"""
