"""How a disk of this process is shown to a guest, and how its writes are tracked meanwhile."""
