"""Several processes on one job: what each learns of the others, and what one alone does not notice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import several

from mogu import processes
from mogu.errors import ConfigError


def fail() -> None:
    raise KeyError("no such thing")


def everything() -> dict[str, Any]:
    found: dict[str, Any] = {
        "who": (processes.rank(), processes.count(), processes.is_main()),
        "gathered": processes.gather(f"of {processes.rank()}"),
        "from main": processes.from_main(lambda: processes.rank() + 10),
        "share": processes.share(range(7)),
        "devices": (processes.own_device(None), processes.own_device("cpu")),
    }
    try:
        processes.from_main(fail)
    except Exception as error:
        found["failed"] = (type(error).__name__, str(error))
    try:
        processes.own_device("cuda:1")
    except ConfigError as error:
        found["refused"] = str(error)
    found["first"] = processes.first_to_fail()
    return found


def test_two_processes_know_share_and_tell(tmp_path: Path) -> None:
    main, other = several.run(2, everything, tmp_path)
    assert (main["who"], other["who"]) == ((0, 2, True), (1, 2, False))
    assert main["gathered"] == other["gathered"] == ["of 0", "of 1"]
    assert main["from main"] == other["from main"] == 10
    assert (main["share"], other["share"]) == ([0, 2, 4, 6], [1, 3, 5])
    assert main["devices"] == other["devices"] == ("cpu", "cpu")
    assert main["failed"] == ("KeyError", "'no such thing'")
    assert other["failed"] == ("MainFailed", "KeyError: 'no such thing'")
    assert sorted([main["first"], other["first"]]) == [False, True]
    assert main["refused"].startswith("2 processes cannot share the device cuda:1")


def test_one_process_is_alone() -> None:
    processes.start()
    assert (processes.rank(), processes.count(), processes.is_main()) == (0, 1, True)
    assert processes.gather(3) == [3]
    assert processes.share("abc") == ["a", "b", "c"]
    assert processes.from_main(lambda: 4) == 4
    assert processes.own_device("cuda:1") == "cuda:1"
    assert processes.first_to_fail()
    with pytest.raises(KeyError):
        processes.from_main(fail)
    processes.wait()
    processes.end()


def test_fsdp_is_heard_and_kept_from_accelerate(tmp_path: Path) -> None:
    def heard() -> Any:
        with pytest.raises(ConfigError, match=r"FSDP is for mogu train; reading needs"):
            processes.need_whole("reading")
        return processes.sharded(), os.environ["ACCELERATE_USE_FSDP"]

    assert several.run(2, heard, tmp_path, ACCELERATE_USE_FSDP="true") == [(True, "false")] * 2


def test_zero_3_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("WORLD_SIZE", "2"),
        ("ACCELERATE_USE_DEEPSPEED", "true"),
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3"),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"ZeRO-3 shards; use fsdp\.yaml"):
        processes.start()
