"""The ``qcow2`` volume: images of QEMU's own format, by QEMU's own code."""
