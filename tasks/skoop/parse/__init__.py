"""Text that network tools print, turned into the values of `model`: pure functions, one module per tool.

Every reader takes the whole text and either returns all that is in it or raises `errors.ParseError` with file, line and
column: input that was cut short is an error, never a smaller state. What a tool prints and we do not know is kept as text
where the model has room for it (matches, targets, nftables objects) and passed over where it cannot decide about a packet.
"""
