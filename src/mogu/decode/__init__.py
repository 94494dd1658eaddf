"""Decoding: the first m new tokens routed, the rest from the plain base."""

from mogu.adapter.model import MoguModel
from mogu.decode.handover import generate

MoguModel.decoder = staticmethod(generate)

__all__ = ["generate"]
