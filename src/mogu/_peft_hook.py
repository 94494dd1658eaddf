"""Register MoGU with peft as soon as peft is imported, without importing it (and torch) ourselves.

peft looks adapters up by their type while loading, so the method must be there before the first
``PeftModel.from_pretrained``; importing peft takes seconds, which ``mogu --help`` should not cost.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType


def register_with_peft() -> None:
    """Import the rooms that register themselves with peft: now if peft is loaded, else right after it is."""
    if "peft" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _PeftFinder())


def _register() -> None:
    importlib.import_module("mogu.adapter")
    importlib.import_module("mogu.decode")


class _PeftFinder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "peft":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    """Load peft as its own loader does, then register MoGU."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register()
