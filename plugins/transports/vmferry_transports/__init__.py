"""Transports that come with vmferry."""
