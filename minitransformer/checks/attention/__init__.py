"""Attention functions: what they may declare, what is asked of them, what breaks it."""

from minitransformer.checks.attention import core, robust, strict  # noqa: F401 -- they register checks
