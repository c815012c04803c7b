"""The DAGs, one short file each."""
