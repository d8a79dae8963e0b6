"""Training: the loop, checkpoints, and the tasks with their data."""
