"""The parts of benchmark.py: how to measure, whom, what, and how to show it."""
