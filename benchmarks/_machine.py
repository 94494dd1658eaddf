"""What the figures of a benchmark depend on, without names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Cores, memory, instructions, versions, and how busy it is."""
    import torch

    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    flags = Path("/proc/cpuinfo").read_text()
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "memory_gb": round(int(memory.split()[1]) / 1e6, 1),
        "bf16_instructions": [name for name in ("avx512_bf16", "amx_bf16") if name in flags],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }
