"""Decoders with a KV cache: what they may declare, what is asked of them, what breaks it."""

from minitransformer.checks.caches import checks  # noqa: F401 -- it registers them
