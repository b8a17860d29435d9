"""The ``blkback`` tracker: eBPF programs at the block layer's tracepoints mark what is written."""
