"""What a Service promises and whether the nodes are programmed to keep it: the service Processor."""
