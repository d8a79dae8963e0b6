"""Training: the loop, the tasks with their data, and the folder that is left."""
