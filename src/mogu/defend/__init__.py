"""Defences behind one small interface: MoGU, its rivals from the paper, and its ablations."""

from mogu.defend.base import REFUSAL, Conversation, Defense, Pipeline, Reply, Stopped, Target
from mogu.defend.registry import create, defense_class, defense_names

__all__ = [
    "REFUSAL",
    "Conversation",
    "Defense",
    "Pipeline",
    "Reply",
    "Stopped",
    "Target",
    "create",
    "defense_class",
    "defense_names",
]
