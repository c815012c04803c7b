"""Engines: what runs a DAG. Each does what `protocol.Engine` says, and a DAG gives the same on all of them."""
