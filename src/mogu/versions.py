"""Versions of everything that a result depends on, saved beside it."""

from __future__ import annotations

import importlib.metadata
import platform


def versions() -> dict[str, str]:
    """Version of Python, mogu and the libraries that decide numbers."""
    found = {"python": platform.python_version()}
    for name in ("mogu-llm", "torch", "transformers", "peft", "accelerate", "safetensors"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
