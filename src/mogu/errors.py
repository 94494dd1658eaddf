"""What can go wrong for a user, each with one line that names the fault and the fix.

The library raises these; the command line prints the message and exits with status 2, without a stack trace.
"""

from __future__ import annotations


class MoguError(Exception):
    """Base of every error that a user can mend."""


class ConfigError(MoguError, ValueError):
    """A setting is missing, unknown, out of range, or contradicts another one."""


class ModelError(MoguError):
    """A model or tokenizer cannot be found, read or used."""


class AdapterError(MoguError, ValueError):
    """An adapter does not fit the model, or is asked for something it cannot do."""


class DataError(MoguError, ValueError):
    """A data file or row is wrong; the message starts with ``file:line`` where there is one."""


class GenerationError(MoguError, ValueError):
    """A decoding option that routed decoding does not support."""


class QueueFullError(MoguError):
    """A server has as many requests waiting as it may; come back later."""


class TrainingError(MoguError):
    """Training cannot start, or cannot go on."""


class DivergedError(TrainingError):
    """A loss or weights are no longer finite: these settings do not train."""


class PublishError(MoguError):
    """An adapter cannot be put where others get it."""


class MissingExtraError(MoguError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, need: str, extra: str) -> None:
        super().__init__(f"{need} is not installed; run: pip install 'mogu-llm[{extra}]'")
