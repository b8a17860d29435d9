"""A hypervisor whose guests are ordinary processes: real memory, real disk I/O, no virtual machine.

A guest is a child process that plays a machine: its memory is a mapped file with software dirty
tracking, its disks are NBD exports or plain files, and it runs a workload whose every write
identifies itself. A host is a folder. That makes it three things: the hypervisor one can try
without any other, the double that tests drive, and a load generator for experiments. What it is
not is a virtual machine: it says nothing about how a hypervisor's own memory copy performs.

==============  ================================================================
module          holds
==============  ================================================================
``guest``       the guest program and its life as a process
``machine``     one step of the guest: completions, new requests, memory writes
``workload``    what the guest does, and how it chooses the next request
``disk``        what a disk is to the guest; ``nbd_disk`` and ``disks`` what is behind it
``layout``      where everything lies in guest memory
``stamps``      blocks that identify themselves
``console``     the record of acknowledged writes kept outside guest memory
``folder``      the files of a guest and of a host
``departure``   sending, ``arrival`` receiving, ``framing`` what is between them
``driver``      the plugin
``checker``     disk and memory against the records
``trial``       the guest that is made to be migrated and checked
==============  ================================================================
"""
