"""Several processes on this machine for a test: forked, so that nothing is imported again, and joined by gloo."""

from __future__ import annotations

import gc
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mogu import processes

_SECONDS = 120
"""After which processes that wait for each other are ended."""


def run(count: int, work: Callable[[], Any], folder: Path, **environment: str) -> list[Any]:
    """What ``work`` returns in each of ``count`` processes.

    Raises:
        AssertionError: One of them failed or did not end; its trace is printed.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            _child(rank, count, port, work, folder, environment)
        children.append(child)
    statuses = _ended(children)
    assert statuses == [0] * count, f"exit statuses {statuses}"
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(count)]


def _child(
    rank: int, count: int, port: int, work: Callable[[], Any], folder: Path, environment: dict[str, str]
) -> None:
    status = 1
    try:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()}, **environment)
        gc.freeze()  # Trainer collects garbage twice a run; torch's own objects are none
        processes.start()
        (folder / f"{rank}.pickle").write_bytes(pickle.dumps(work()))
        processes.end()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _ended(children: list[int]) -> list[int]:
    """Exit statuses; as a launcher does, the rest are ended when one fails."""
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + _SECONDS
    while len(statuses) < len(children):
        for child in children:
            if child not in statuses:
                found, status = os.waitpid(child, os.WNOHANG)
                if found:
                    statuses[child] = os.waitstatus_to_exitcode(status)
        if any(statuses.values()) or time.monotonic() > deadline:
            time.sleep(0.5)
            for child in children:
                if child not in statuses:
                    os.kill(child, 9)
                    statuses[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.01)
    return [statuses[child] for child in children]
