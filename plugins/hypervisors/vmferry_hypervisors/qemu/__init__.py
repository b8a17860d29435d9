"""QEMU guests: found by their QMP sockets, moved by QEMU's own migration stream."""
