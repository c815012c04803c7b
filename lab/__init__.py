"""Real clusters in network namespaces: to learn on, to demonstrate with, to test against.

`lab.api` is the way in. Everything happens in namespaces that the lab made itself; the host's own network is never touched.
"""
