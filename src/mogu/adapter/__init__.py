"""MoGU as a peft method: configuration, layer, routers, tuner. Importing this room registers it with peft."""

import peft  # noqa: F401  first: importing peft imports this room again (see mogu._peft_hook)

from mogu.adapter.config import MoguConfig
from mogu.adapter.layer import MoguLinear
from mogu.adapter.model import MoguModel, register
from mogu.adapter.router import FactoredRouter, FoldedRouter

register()

__all__ = ["FactoredRouter", "FoldedRouter", "MoguConfig", "MoguLinear", "MoguModel"]
