"""Plugins for vmferry that come from a distribution of their own."""
