"""Decoding: the first m new tokens routed, the rest from the plain base."""

from mogu.adapter.model import MoguModel
from mogu.decode.handover import generate
from mogu.decode.inspect import risk

MoguModel.decoder = staticmethod(generate)
MoguModel.reader = staticmethod(risk)

__all__ = ["generate", "risk"]
