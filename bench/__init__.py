"""Benchmarks: each prints its figure, and a ratio against something outside the project where there is one."""
