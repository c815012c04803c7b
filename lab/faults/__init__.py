"""Faults as data: what is done to a lab, what that breaks, and what a diagnosis should say about it."""
