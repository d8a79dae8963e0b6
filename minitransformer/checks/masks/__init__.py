"""Functions that build a mask: what they may declare, what is asked of them, what breaks it."""

from minitransformer.checks.masks import checks  # noqa: F401 -- it registers them
