"""Several processes that work on one job, each on a device of its own: who am I, wait, tell the others.

A launcher (``torchrun``, ``accelerate launch``) starts the same command several times and says in the environment which
process is which. Started alone, a process is the main one of one, and everything here does nothing.

What all processes call, each must call, in the same order: a process that does not come is waited for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from mogu.errors import ConfigError, MoguError

T = TypeVar("T")

_PATIENCE = timedelta(days=2)
"""How long a process waits for the others: the main one may be at work alone. A launcher ends all when one fails."""


@dataclass(frozen=True)
class _Group:
    rank: int
    count: int
    store: Any
    """torch's key-value store, which all processes reach; the launcher holds it."""
    sharded: bool


_group: _Group | None = None


class MainFailed(MoguError):
    """The main process could not do what the others wait for; it says itself why."""


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def start() -> None:
    """Join the other processes, if there are any: gloo between CPUs, nccl between CUDA devices, one for each process.

    Raises:
        ConfigError: More processes on this machine than it has CUDA devices, or an engine that mogu cannot use.
    """
    global _group
    if _group is not None or not launched():
        return
    import torch
    from torch import distributed

    cuda = torch.cuda.is_available() and not _set("ACCELERATE_USE_CPU")
    local = int(os.environ.get("LOCAL_RANK") or 0)
    if cuda and local >= torch.cuda.device_count():
        raise ConfigError(
            f"{os.environ.get('LOCAL_WORLD_SIZE', local + 1)} processes on a machine with {torch.cuda.device_count()} "
            "CUDA devices; start one for each device (--nproc_per_node, --num_processes)"
        )
    if _set("ACCELERATE_USE_DEEPSPEED") and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        raise ConfigError("mogu cannot train parameters that ZeRO-3 shards; use fsdp.yaml, which shards the base")
    if cuda:
        torch.cuda.set_device(local)
    store, rank, count = next(distributed.rendezvous("env://", timeout=_PATIENCE))
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=distributed.PrefixStore("group", store),
        rank=rank,
        world_size=count,
        timeout=_PATIENCE,
    )
    _group = _Group(rank, count, distributed.PrefixStore("mogu", store), _set("ACCELERATE_USE_FSDP"))
    # The base is sharded by ourselves (mogu.train.sharding): accelerate would shard what is trained, too.
    os.environ["ACCELERATE_USE_FSDP"] = "false"


def _set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def end() -> None:
    """Take leave of the others, when all have done their work."""
    global _group
    if _group is None:
        return
    from torch import distributed

    wait()
    distributed.destroy_process_group()
    _group = None


def rank() -> int:
    """Number of this process, from 0."""
    return 0 if _group is None else _group.rank


def count() -> int:
    """How many processes there are."""
    return 1 if _group is None else _group.count


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def is_first_here() -> bool:
    """Whether this is the first process on its machine."""
    return _group is None or int(os.environ.get("LOCAL_RANK") or 0) == 0


def machine() -> int:
    """Number of this machine among those of the job."""
    return 0 if _group is None else int(os.environ.get("GROUP_RANK") or 0)


def sharded() -> bool:
    """Whether the launcher asked for FSDP: the base is to be spread over the processes while it trains."""
    return _group is not None and _group.sharded


def need_whole(what: str) -> None:
    """Refuse to do ``what`` with a base that is spread over the processes.

    Raises:
        ConfigError: It is to be.
    """
    if sharded():
        raise ConfigError(f"FSDP is for mogu train; {what} needs the whole base in each process (ddp.yaml)")


def own_device(device: str | None) -> str | None:
    """``device`` if it is one for all processes; with CUDA, that of this process.

    Raises:
        ConfigError: It names one CUDA device, and there are several processes.
    """
    if _group is None:
        return device
    if device is not None and ":" in device:
        raise ConfigError(f"{count()} processes cannot share the device {device}; leave it out: each takes its own")
    import torch

    if device == "cpu" or not torch.cuda.is_available() or _set("ACCELERATE_USE_CPU"):
        return "cpu"
    return f"cuda:{torch.cuda.current_device()}"


def wait() -> None:
    """Until all processes are here."""
    gather(None)


def gather(value: T) -> list[T]:
    """The ``value`` of every process, in order; small things that can be pickled."""
    if _group is None:
        return [value]
    from torch import distributed

    found: list[Any] = [None] * _group.count
    distributed.all_gather_object(found, value)
    return found


def from_main(compute: Callable[[], T]) -> T:
    """What ``compute`` returns in the main process, in all processes; the others do not call it.

    Raises:
        MainFailed: In the others, when it raises in the main process.
    """
    if _group is None:
        return compute()
    if not is_main():
        value, failure = _broadcast(None, None)
        if failure is not None:
            raise MainFailed(failure)
        result: T = value
        return result
    try:
        value = compute()
    except Exception as error:
        _broadcast(None, f"{type(error).__name__}: {error}")
        raise
    _broadcast(value, None)
    return value


def _broadcast(value: Any, failure: str | None) -> list[Any]:
    from torch import distributed

    said = [value, failure]
    distributed.broadcast_object_list(said, src=0)
    return said


def share(items: Sequence[T]) -> list[T]:
    """Those of ``items`` that fall to this process: every n-th, so that what lies sorted by length is evenly dealt."""
    return list(items[rank() :: count()])


def first_to_fail() -> bool:
    """Whether no other process has failed before: the first one says why, the others only could not go on."""
    if _group is None:
        return True
    try:
        return int(_group.store.add("failed", 1)) == 1
    except Exception:  # torch raises several kinds when the launcher, which holds the store, is gone
        return False
