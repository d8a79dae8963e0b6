"""Labels and collators: what they may declare, what is asked of them, what breaks it."""

from minitransformer.checks.labels import checks  # noqa: F401 -- it registers them
