"""What native nftables rules do to a packet: base chains of the IP families, evaluated from the JSON that nft prints.

Sister of `xtables`, with the same seam to the walk (`xtables.api`). Follows nf_tables_core.c and the nft_*.c expressions
(net/netfilter), and libnftables-json(5) for what a listing says. What is not understood is never taken to match: it splits
the way and is named in `missing`, or ends it as UNKNOWN.
"""
