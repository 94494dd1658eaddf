"""Decoder layers a few lines of the batch at a time: what a layer works on then stays in the processor's cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mogu.prefix import REFUSED, state_tolerance

PIECE_TOKENS = 2048
"""Tokens of a piece, padding included."""

Between = Callable[[torch.Tensor], Callable[[slice], None]]
"""Called with all that a projection reads, (lines, columns, d_in); what it returns, before each piece goes on there."""


@contextmanager
def in_pieces(
    layers: Mapping[int, nn.Module], lines: int, size: int, stops: Mapping[int, tuple[nn.Module, Between]] | None = None
) -> Iterator[None]:
    """Inside, each of ``layers`` computes ``size`` lines at a time.

    Args:
        layers: Decoder layers by index.
        lines: Of the batch that goes through them.
        size: Lines of a piece; as many as there are, and they go through as they come.
        stops: By index of the layer: a projection in it that no line passes before all have come so far, and what
            happens there. What lies below it in the layer is computed twice.
    """
    before = {index: vars(layer).get("forward") for index, layer in layers.items()}
    try:
        for index, layer in layers.items():
            layer.forward = _Layer(layer.forward, lines, size, (stops or {}).get(index))
        yield
    finally:
        for index, layer in layers.items():
            if (was := before[index]) is None:
                vars(layer).pop("forward", None)
            else:
                layer.forward = was


def piece_lines(model: Any, inputs: Mapping[str, torch.Tensor], layers: Mapping[int, nn.Module]) -> int:
    """Lines of a piece of ``inputs``; all of them for a model that computes something else in pieces.

    Args:
        model: Takes ``inputs`` and returns hidden states first.
        inputs: Of the whole batch, lines first; two of them are tried.
        layers: As for :func:`in_pieces`.
    """
    lines, columns = inputs["input_ids"].shape
    size = max(PIECE_TOKENS // columns, 1)
    if size >= lines or lines < 2:
        return lines
    few = {name: tensor[:2] for name, tensor in inputs.items()}
    with torch.no_grad():
        whole = model(**few, use_cache=False)[0]
        try:
            with in_pieces(layers, 2, 1):
                pieces = model(**few, use_cache=False)[0]
        except REFUSED:
            return lines
    difference = (whole.float() - pieces.float()).abs().max()
    same = bool(difference <= state_tolerance(whole.dtype) * whole.float().abs().max())
    return size if same else lines


class _Reached(Exception):
    """A piece has come to where it waits for the others."""

    def __init__(self, states: torch.Tensor) -> None:
        self.states = states


class _Layer:
    """Instead of a layer's forward."""

    def __init__(
        self, forward: Callable[..., Any], lines: int, size: int, stop: tuple[nn.Module, Between] | None
    ) -> None:
        self.forward, self.lines, self.size, self.stop = forward, lines, size, stop

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        spans = [slice(start, start + self.size) for start in range(0, self.lines, self.size)]
        go_on: Callable[[slice], None] = lambda span: None  # noqa: E731
        if self.stop is not None:
            projection, between = self.stop
            handle = projection.register_forward_pre_hook(_wait)
            try:
                waiting = torch.cat([self._reach(span, args, kwargs) for span in spans])
            finally:
                handle.remove()
            go_on = between(waiting)
            del waiting
        found = []
        for span in spans:
            go_on(span)
            found.append(self._piece(span, args, kwargs))
        if len(found) == 1 or isinstance(found[0], torch.Tensor):
            return found[0] if len(found) == 1 else torch.cat(found)
        return (torch.cat([each[0] for each in found]), *found[0][1:])

    def _reach(self, span: slice, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        try:
            self._piece(span, args, kwargs)
        except _Reached as reached:
            return reached.states
        raise RuntimeError("a decoder layer did not call its attention output projection")

    def _piece(self, span: slice, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.size >= self.lines:
            return self.forward(*args, **kwargs)
        return self.forward(*self._cut(args, span), **{name: self._cut(one, span) for name, one in kwargs.items()})

    def _cut(self, value: Any, span: slice) -> Any:
        """Of tensors that have a line for each of the batch, those of the piece."""
        if isinstance(value, torch.Tensor):
            return value[span] if value.dim() > 1 and len(value) == self.lines else value
        if isinstance(value, tuple):
            return tuple(self._cut(one, span) for one in value)
        return value


def _wait(module: nn.Module, args: tuple[Any, ...]) -> None:
    raise _Reached(args[0])
