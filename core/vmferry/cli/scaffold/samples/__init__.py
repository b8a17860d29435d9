"""Plugins that keep their contracts, from which ``migrate plugins new`` makes projects."""
