"""The ``qemu`` volume: the disk of a running QEMU, as the source of a migration reads it."""
