"""What each network plugin promises for nodes, pods and the ways between them, as expectations on collected state."""
