"""Grading: strangers' code in a sandbox (Linux only), and a folder of submissions to scores."""
