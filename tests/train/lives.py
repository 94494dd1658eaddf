"""``mogu train`` again and again in processes that kill themselves at chosen points, for ``test_kills.py``.

A script: it loads the libraries once and forks, so that each life costs no start. What it is told and what it tells is
JSON: a list of ``{"arguments": […], "out": DIR, "die": N, [life, share] or null, "half": bool}``, and a list of
``{"status": wait status, "events": changes of files seen}``.

A life dies by SIGKILL just before its ``N``-th change below ``DIR``, or after that share of the changes of an earlier
life. A change: a file opened for writing, renamed or removed, a folder made or removed. With ``half``, the file that
was opened last is cut in its middle first, as if the kill had come while it was written.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


class Reaper:
    """An audit hook that counts changes of files and kills its process before one of them."""

    CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")

    def __init__(self, out: str, die: int | None, half: bool) -> None:
        self.out, self.die, self.half = out, die, half
        self.events = 0
        self.last: Path | None = None

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            _, mode, flags = arguments
            if not (set(mode or "") & set("wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR)):
                return
        elif event not in self.CHANGES:
            return
        # tensorboard writes in a thread of its own: when is another matter at every run.
        if not isinstance(arguments[0], str | Path) or "tensorboard" in str(arguments[0]):
            return
        if not str(arguments[0]).startswith(self.out):
            return
        self.events += 1
        if self.events == self.die:
            if self.half and self.last is not None and self.last.is_file():
                os.truncate(self.last, self.last.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        self.last = Path(arguments[0]) if event == "open" else self.last


def tell_of_native_writes() -> None:
    """torch and safetensors write files without Python: raise the event that ``open`` would."""
    import peft.peft_model
    import torch

    import mogu.train.run

    def telling(real: Any) -> Any:
        def save(what: Any, where: Any, *args: Any, **kwargs: Any) -> Any:
            sys.audit("open", os.fspath(where), "w", 0)
            return real(what, where, *args, **kwargs)

        return save

    torch.save = telling(torch.save)
    mogu.train.checkpoints.save_file = telling(mogu.train.checkpoints.save_file)
    peft.peft_model.safe_save_file = telling(peft.peft_model.safe_save_file)


def live(life: dict[str, Any], tell: int) -> None:
    """One life in a child process; the number of events goes to the file descriptor ``tell``."""
    from mogu.cli.main import app

    reaper = Reaper(life["out"], life["die"], life["half"])
    sys.addaudithook(reaper)
    status: Any = 0
    try:
        app(life["arguments"], prog_name="mogu")
    except SystemExit as end:
        status = end.code
    os.write(tell, str(reaper.events).encode())
    os._exit(int(status or 0))


def main() -> None:
    """Load everything, then fork once for each life on stdin."""
    import torch.utils.tensorboard  # noqa: F401

    import mogu.decode
    import mogu.train.run  # noqa: F401
    from mogu.models import load_base

    tell_of_native_writes()
    told = json.load(sys.stdin)
    load_base(told[0]["arguments"][2])[1].apply_chat_template([{"role": "user", "content": ""}])
    gc.collect()
    gc.freeze()  # or every child looks through all of torch's objects
    results = []
    for life in told:
        if isinstance(life["die"], list):
            earlier, share = life["die"]
            life["die"] = 2 + int((results[earlier]["events"] - 2) * share)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(2, 1)  # stdout is for the results
            live(life, write)
        os.close(write)
        _, status = os.waitpid(child, 0)
        with os.fdopen(read) as told:
            results.append({"status": status, "events": int(told.read() or 0)})
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
