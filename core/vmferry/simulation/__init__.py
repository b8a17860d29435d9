"""Hosts, disks, a network and guests that exist in memory, on virtual time, decided by a seed.

A ``World`` holds two hosts. The engine runs in it unchanged: time is the loop's, disks, network
and hypervisor are plugins of the same contracts as the real ones. What a guest was told is
recorded outside of it, so that every write that is lost, wrong or seen twice is found, and every
failure can be had again from its seed.
"""
