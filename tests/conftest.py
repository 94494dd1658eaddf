"""Every test runs offline, on one thread, from the same seed."""

from __future__ import annotations

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is first imported

import pytest


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers in every test, whichever ran before; costs nothing where torch is not used."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)
