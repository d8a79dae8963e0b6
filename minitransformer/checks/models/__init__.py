"""Whole models: what they may declare, what is asked of them, what breaks it."""

from minitransformer.checks.models import checks  # noqa: F401 -- it registers them
