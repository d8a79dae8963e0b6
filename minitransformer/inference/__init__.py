"""Inference: writing tokens one after the other, and running a model on text."""
