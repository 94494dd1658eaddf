"""``mogu evaluate``: how often defences refuse, comply or break down on suites of prompts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mogu.cli import options
from mogu.cli.view import cost_table, print_table, progress_view
from mogu.errors import ConfigError

if TYPE_CHECKING:
    from mogu.defend import Pipeline
    from mogu.evaluate.suites import Prompts
    from mogu.loading import Loaded


def evaluate(
    suite: Annotated[
        str,
        typer.Option(
            metavar="SUITE[,SUITE…]",
            help="A built-in suite, NAME=FILE, or a file (.jsonl, .csv, .txt, .yaml); FILE:FIELD names the field, "
            "FILE@KIND says what it is: malicious, benign, borderline or jailbreak.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where responses, numbers and report go.")],
    model: options.OptionalModel = None,
    adapter: options.Adapter = None,
    defense: options.Defenses = None,
    data: options.TrainingData = None,
    prefill: Annotated[
        str,
        typer.Option(
            metavar="K[,K…]", help="Also attack malicious suites: K tokens of the answer are written already."
        ),
    ] = "0",
    dial: Annotated[
        str | None,
        typer.Option(metavar="D[,D…]", help="Run mogu with its safety dial at each value; draw the curve."),
    ] = None,
    new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Length of the answers.")] = 64,
    batch_size: options.BatchSize = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="N prompts per suite, evenly spaced.")] = None,
    seeds: Annotated[str, typer.Option(metavar="N[,N…]", help="Seeds of sampled answers; needs --temperature.")] = "",
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    keep_seen: Annotated[
        bool, typer.Option("--keep-seen", help="Also ask prompts that are (nearly) among the training rows.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only ask and judge: no perplexity, divergence from the base, latency.")
    ] = False,
    template: options.Template = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    quantize: options.Quantize = None,
    offload: options.Offload = None,
    config: options.Config = None,
) -> None:
    """Answer suites of prompts with defences and count refusals. Run again to go on after an interruption."""
    seen = _training_rows(adapter, data)
    suites = read_suites(suite, limit, None if keep_seen else seen)
    lengths, sampled = _numbers(prefill, "--prefill"), _numbers(seeds, "--seeds")
    names = _defenses(defense, adapter)
    if dial is not None:
        names = _dialled(names, dial, adapter)
    options.writable_folder(out)
    with progress_view() as progress:
        progress.begin("model", f"model: loads {model or adapter}")
        from mogu.cli.loading import batch_size_for, load
        from mogu.evaluate.ask import Sampling
        from mogu.evaluate.prefill import with_prefill
        from mogu.evaluate.run import Options, stored_batch_size
        from mogu.evaluate.run import evaluate as run
        from mogu.evaluate.suites import asked_text
        from mogu.processes import from_main

        asking = Options(new_tokens, Sampling(tuple(sampled), temperature or None, top_p), measures=not quick)
        loaded = load(model, adapter, template=template, dtype=dtype, device=device, quantize=quantize, offload=offload)
        asked = with_prefill(suites, lengths, loaded.tokenizer)
        texts = [asked_text(row) for one in suites for row in one.rows]
        given = batch_size
        batch_size = from_main(lambda: given or stored_batch_size(out) or batch_size_for(loaded, texts, None))
        pipelines = _pipelines(names, loaded, out, seen, batch_size)
        progress.end(f"batches of {batch_size}")
        settings = _settings(loaded, quantize, seen)
        summary = run(pipelines, asked, out, settings=settings, options=asking, progress=progress)
    _print(summary, out)


def _print(summary: dict[str, Any], out: Path) -> None:
    """Rates, and where there is something to compare what it costs; then where the rest is."""
    from mogu.evaluate.report import text_table

    print_table(text_table(summary))
    print()
    if "n" not in summary:  # several suites or defences
        print_table(cost_table(out))
        print(f"\nreport:    {out}/report.html")
    print(f"responses: {out}/responses.jsonl")


def _settings(loaded: Loaded, quantize: str | None, seen: list[Any] | None) -> dict[str, Any]:
    """What decides the answers besides prompts and defences."""
    from mogu.adapter.store import digest
    from mogu.data.rows import fingerprint, instruction_of

    return {
        "model": loaded.name,
        "adapter": loaded.adapter and digest(loaded.adapter),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "quantize": quantize,
        "template": loaded.template,
        "training_rows": fingerprint([instruction_of(row) for row in seen]) if seen else None,
    }


def read_suites(sources: str, limit: int | None, seen: Any = None) -> list[Prompts]:
    """The prompts of each suite, at most ``limit``, without those that are (nearly) among the rows ``seen``.

    Raises:
        ConfigError: No suite, an unknown one, or two of one name.
        DataError: A file is missing or holds a bad row, or nothing is left.
    """
    from mogu.evaluate.overlap import Seen
    from mogu.evaluate.suites import gather, parse_suites

    known = Seen(row.instruction for row in seen) if seen else None
    return gather(parse_suites(sources), limit=limit, seen=known)


def _training_rows(adapter: Path | None, data: Path | None) -> list[Any] | None:
    """What training and the choice of checkpoints saw: ``--data``, else the data beside the adapter, if any."""
    from mogu.data.rows import ROWS_FILE, read_rows

    beside = [] if adapter is None else [adapter / "data", adapter.parent / "data"]
    folder = data or next((one for one in beside if (one / ROWS_FILE).is_file()), None)
    return None if folder is None else [row for row in read_rows(folder) if row.split != "test"]


def _numbers(text: str, option: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = [-1]
    if any(number < 0 for number in found):
        raise ConfigError(f"{option} takes whole numbers separated by commas, not {text!r}")
    return list(dict.fromkeys(found)) if option == "--prefill" else found


def _defenses(names: str | None, adapter: Path | None) -> list[str]:
    if names is None:
        return ["none" if adapter is None else "mogu"]
    found = [part.strip() for part in names.split(",") if part.strip()]
    if not found:
        raise ConfigError("--defense names no defence; 'none' is the plain base")
    return found


def _dialled(names: list[str], dial: str, adapter: Path | None) -> list[str]:
    """``names`` with MoGU at each position of the dial in the place of mogu, or at the end."""
    try:
        values = [float(part) for part in dial.split(",") if part.strip()]
    except ValueError:
        values = []
    if not values or not all(map(math.isfinite, values)):
        raise ConfigError(f"--dial takes numbers separated by commas, not {dial!r}: --dial -4,-2,0,2,4")
    if adapter is None:
        raise ConfigError("--dial needs an --adapter")
    dialled = list(dict.fromkeys(f"mogu@{value:g}" for value in values))
    at = names.index("mogu") if "mogu" in names else len(names)
    return [*names[:at], *dialled, *(name for name in names[at:] if name != "mogu")]


def _pipelines(names: list[str], loaded: Loaded, out: Path, rows: list[Any] | None, batch_size: int) -> list[Pipeline]:
    """The defences on one shared base, which has the adapter taken off."""
    from mogu.defend import Target, create

    def training_rows() -> list[Any]:
        if rows is None:
            raise ConfigError("a defence learns from training rows; name the folder of a data set with --data DIR")
        return rows

    target = Target(
        model=loaded.model.unload() if loaded.routed else loaded.model,
        tokenizer=loaded.tokenizer,
        name=loaded.name,
        workspace=out / "work" / "learnt",
        template=loaded.template,
        adapter=loaded.adapter,
        rows=training_rows,
        batch_size=batch_size,
    )
    return [create(name, target) for name in names]
