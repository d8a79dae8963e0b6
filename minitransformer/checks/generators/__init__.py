"""Functions that write text with a model: what they may declare, what is asked, what breaks it."""

from minitransformer.checks.generators import checks  # noqa: F401 -- it registers them
