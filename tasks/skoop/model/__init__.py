"""Values that every layer of the diagnosis speaks in: no I/O, no behaviour beyond their own arithmetic.

Immutable throughout (`msgspec.Struct`, frozen): a snapshot holds hundreds of thousands of them, and the JSON that a user
reads is made from them as they are.
"""
