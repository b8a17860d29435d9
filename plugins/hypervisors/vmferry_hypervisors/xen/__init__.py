"""The ``xen`` hypervisor plugin: guests of the Xen hypervisor, by xl(1) and xenstore."""
