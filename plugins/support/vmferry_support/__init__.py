"""What several of the in-tree plugins need: programs run, NBD, QMP and device-mapper spoken."""
