"""Hypervisors that come with vmferry."""
