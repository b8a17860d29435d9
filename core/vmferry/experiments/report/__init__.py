"""What the runs of an experiment say: in the terminal, and as a page that needs nothing else."""
