"""The simulator: what the Linux kernel will do with a packet, in one network namespace.

Pure: state in, steps out. It knows nothing of Kubernetes; KERNEL semantics are cited function by function.
"""
