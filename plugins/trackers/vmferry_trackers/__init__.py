"""Trackers that come with vmferry."""
