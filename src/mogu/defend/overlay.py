"""Weights that a defence puts on the shared base and takes off again.

peft wraps a base once, by replacing some of its modules. An overlay remembers which, so that putting the weights on and
taking them off is one assignment for each replaced module: the base outside is the very same modules as before, and a
pipeline can enter for every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_Swap = tuple[nn.Module, str, nn.Module, nn.Module]


class Overlay:
    """What a wrapper has put into a base; off until :meth:`installed`."""

    def __init__(self, base: Any, wrap: Callable[[Any], Any]) -> None:
        """Wrap the base, note what was replaced, and take it off.

        Args:
            base: A transformers model.
            wrap: Puts weights on it in place and returns the peft model around it; it may train them, too.
        """
        before = dict(base.named_modules())
        attributes = set(vars(base))
        trainable = [(parameter, parameter.requires_grad) for parameter in base.parameters()]
        training = base.training
        try:
            self.model = wrap(base).eval()
        finally:
            self._swaps = list(_swaps(base, before))
            self._put(new=False)
            base.train(training)
            for name in set(vars(base)) - attributes:
                delattr(base, name)
            for parameter, was in trainable:
                parameter.requires_grad_(was)

    @contextmanager
    def installed(self) -> Iterator[Any]:
        """The wrapped model, its weights on the base inside."""
        self._put(new=True)
        try:
            yield self.model
        finally:
            self._put(new=False)

    def _put(self, new: bool) -> None:
        for parent, name, plain, wrapped in self._swaps:
            parent._modules[name] = wrapped if new else plain


def _swaps(base: nn.Module, before: dict[str, nn.Module]) -> Iterator[_Swap]:
    """(parent, name there, module before, module now) of every module that was replaced."""
    after = dict(base.named_modules())
    for path, plain in before.items():
        parent, _, name = path.rpartition(".")
        if path in after and after[path] is not plain and after[parent] is before[parent]:
            yield after[parent], name, plain, after[path]
