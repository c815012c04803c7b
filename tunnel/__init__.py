"""The websocket channel between a managed cluster and its master, opened by the managed side; imports no other package of ours.

Nothing is here yet: the package holds its place, so that the layout and the import contracts stand from the first version.
"""
