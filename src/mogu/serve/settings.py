"""What a server is told when it starts, as data."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mogu.errors import ConfigError

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
"""Hosts that only this machine reaches."""


@dataclass(frozen=True)
class Served:
    """The model that answers, as far as the HTTP side must know it."""

    name: str
    """What clients call it."""
    template: str | None = None
    """As for :func:`mogu.chat.prompt_ids`."""
    routed_tokens: int = 0
    """m that answers are given without a word of the client; 0 without an adapter."""
    handover: str = "fixed"
    risk_threshold: float = 0.5
    """Risk from which a moderation flags."""
    calibrated: bool = False
    """Whether the adapter has a calibrated risk."""
    layers: tuple[int, ...] = ()
    """Routed decoder layers; none without an adapter."""
    fingerprint: str = "mogu"
    """Changes where other weights answer."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix time."""

    @property
    def routed(self) -> bool:
        """Whether an adapter is on the model."""
        return bool(self.layers)


@dataclass(frozen=True)
class Settings:
    """How requests are met."""

    served: Served
    dial: float = 0.0
    """The operator's; a client's is added to it."""
    allow_overrides: bool = False
    """Whether clients may ask for less protection than is served."""
    timeout: float = 600.0
    """Seconds from the arrival of a request to its last token."""
    grace: float = 30.0
    """Seconds that running answers have after SIGTERM."""
    max_body: int = 1 << 20
    """Bytes of a request."""
    max_tokens: int | None = None
    """Most new tokens of one answer; ``None``: what the context leaves."""
    max_choices: int = 16
    """Most answers, or read inputs, of one request."""
    keys: tuple[str, ...] = field(default=(), repr=False)
    """API keys; none: everybody may ask."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of these origins may ask."""
    log_prompts: bool = False
    """Whether prompts and answers are written into the log."""
    playground: bool = False
    """Whether ``/playground`` is served."""

    def __post_init__(self) -> None:
        for name in ("timeout", "grace", "max_body", "max_choices"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")


def read_keys(file: Path | None, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """API keys: the lines of ``file`` (empty ones and those that begin with ``#`` are left out), ``MOGU_API_KEY``, and
    ``MOGU_API_KEYS``, separated by commas.

    Raises:
        ConfigError: The file cannot be read or names no key, or a key cannot be sent in a header.
    """
    keys: list[str] = []
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {file}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
        keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not keys:
            raise ConfigError(f"{file} holds no API key; write one a line")
    keys += [environment.get("MOGU_API_KEY", "").strip()]
    keys += [key.strip() for key in environment.get("MOGU_API_KEYS", "").split(",")]
    found = tuple(dict.fromkeys(key for key in keys if key))
    if any(not key.isascii() or not key.isprintable() or " " in key for key in found):
        raise ConfigError("an API key may hold printable ASCII characters only, and no blanks")
    return found
