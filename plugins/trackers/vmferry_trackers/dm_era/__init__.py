"""The ``dm-era`` tracker: the kernel's era target, put under a device-mapper device while it runs.

See ``Documentation/admin-guide/device-mapper/era.rst`` and ``drivers/md/dm-era-target.c`` of the
kernel, whose rules the modules here name where they follow them.
"""
