"""Register MoGU with peft as soon as peft is imported, without importing it (and torch) ourselves.

peft looks adapters up by their type while loading, so the method must be there before the first
``PeftModel.from_pretrained``; importing peft takes seconds, which ``mogu --help`` should not cost.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
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
    """Stays until peft is really imported: transformers first only asks whether it could be."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "peft":
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader, self)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    """Load peft as its own loader does, then register MoGU."""

    def __init__(self, loader: importlib.abc.Loader, finder: _PeftFinder) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        _register()
