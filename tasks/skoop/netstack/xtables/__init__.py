"""The rule engine of iptables: what one table says about one packet at one hook (`api`), for both back ends and families."""
