"""The commands as launchers start them, in processes that know nothing of the test."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import small
from safetensors.torch import load_file

from mogu.data.rows import ROWS_FILE, write_jsonl
from mogu.train.run import train

SHORT = dataclasses.replace(
    small.RECIPE,
    adapter=dataclasses.replace(small.RECIPE.adapter, dropout=0.0),
    glad=dataclasses.replace(small.RESPONDER, epochs=1),
    unwill=dataclasses.replace(small.RESPONDER, epochs=1),
    balance=dataclasses.replace(small.RECIPE.balance, shifts=(0.5,)),
)


def test_torchrun_trains_what_one_process_trains(tmp_path: Path) -> None:
    model, rows = small.save_base(tmp_path / "base"), small.rows()
    write_jsonl(tmp_path / "data" / ROWS_FILE, (dataclasses.asdict(row) for row in rows))
    (tmp_path / "recipe.yaml").write_text(SHORT.to_yaml())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "mogu"]
    options = ["--model", model, "--data", tmp_path / "data", "--recipe", tmp_path / "recipe.yaml", "--track", ""]
    done = subprocess.run(
        [*launcher, "train", *map(str, options), "--out", str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"adapter: {tmp_path}/two/adapter\nTry it: mogu chat --adapter {tmp_path}/two\n"
    assert done.stderr.count("glad responder: learns always to help") == 1
    train(small.base(), small.tokenizer(), rows, SHORT, tmp_path / "one", model_name=model, track=())
    one, two = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        tolerance = 1e-3 * float(tensor.abs().max()) if "router" in name else 1e-5  # routers are fitted
        assert (tensor - two[name]).abs().max() <= tolerance, name


def test_other_commands_refuse_to_run_several_times(run, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("mogu.processes.start", lambda: None)
    result = run("runs", ".")
    assert result.exit_code == 2
    assert result.stderr == "error: runs works in one process; start it without a launcher\n"
