"""A guest without an operating system, and the proof that nothing of what it wrote was lost."""
