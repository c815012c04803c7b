"""The managing cluster's side: an operator for Cluster, Probe and Alert, the API, history, alerts and the console.

Nothing is here yet: the package holds its place, so that the layout and the import contracts stand from the first version.
"""
