"""Volume plugins of the vmferry distribution."""
