"""The ``qcow2`` tracker: dirty bitmaps that QEMU keeps, of disks of any format."""
