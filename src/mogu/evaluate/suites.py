"""Suites of prompts: built-in definitions, the user's files, and YAML files that describe either.

A definition says where prompts come from and what they are; the prompts themselves are read from the hub or a file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mogu.data.sources import read_prompts, seed_instructions
from mogu.errors import ConfigError, DataError

KINDS = ("malicious", "benign", "borderline", "jailbreak", "unknown")
"""What a suite asks for: harm; help; help in alarming words; harm in disguise; nobody said."""
HARMFUL = ("malicious", "jailbreak")
HARMLESS = ("benign", "borderline")
PLACEHOLDER = "{instruction}"
"""Where a jailbreak template takes the instruction."""

T = TypeVar("T")

OWN_FIELDS = frozenset(
    (
        *("suite", "kind", "defense", "seed", "asked", "prefill", "prefill_ids", "response", "label", "reasons"),
        *("stopped_by", "stopped_because", "perplexity"),
    )
)
"""Fields of a response that are ours; a prompt's own field of that name is kept as ``prompt_NAME``."""


@dataclass(frozen=True)
class Suite:
    """Where prompts come from and what they are."""

    name: str
    """Under which its results appear."""
    kind: str = "unknown"
    """One of :data:`KINDS`."""
    source: str = ""
    """A file, ``hub:OWNER/NAME``, ``seeds:KIND``, or ``file: where to get it`` for one that the user must bring."""
    field: str | None = None
    """Field of the bare instruction, which the judge reads; ``None`` looks for the usual names."""
    asked: str | None = None
    """Field of the text that the model is asked, where a jailbreak wraps the instruction; ``None``: the instruction."""
    template: str | None = None
    """Field of a template that wraps the instruction, which it takes at ``{instruction}``."""
    target: str | None = None
    """Field of an affirmative first sentence, for prefilling attacks."""
    category: str | None = None
    """Field of a category, for the table by category."""
    filter: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Keep only rows with these values; a list means one of them."""
    limit: int | None = None
    """Only so many rows, evenly spaced."""
    config: str | None = None
    """Configuration of the hub data set."""
    split: str | None = None
    """Split of the hub data set."""
    files: tuple[str, ...] = ()
    """Files of the hub data set, read where the package ``datasets`` is missing."""
    licence: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"suite {self.name}: unknown kind {self.kind!r}; choose from {', '.join(KINDS)}")
        if "/" in self.name or not self.name:
            raise ConfigError(f"{self.name!r} cannot be the name of a suite: its results go to a folder of that name")


@dataclass(frozen=True)
class Prompts:
    """The prompts of a suite, each with an ``instruction`` and perhaps ``asked``, ``category``, ``target``, …."""

    suite: Suite
    rows: Sequence[Mapping[str, Any]]
    excluded: Mapping[str, int] | None = None
    """How many were left out because training had seen them (``exact``, ``near``); ``None``: nobody looked."""
    prefill: int = 0
    """Tokens of an affirmative answer that an attacker has already written."""

    @property
    def name(self) -> str:
        """Name of the suite and of the attack."""
        return self.suite.name + (f"+prefill{self.prefill}" if self.prefill else "")

    @property
    def kind(self) -> str:
        """What the prompts are; with a prefilled answer they are a jailbreak."""
        return "jailbreak" if self.prefill else self.suite.kind


@cache
def built_in() -> dict[str, Suite]:
    """The shipped definitions by name."""
    text = resources.files("mogu.evaluate").joinpath("suites.yaml").read_text(encoding="utf-8")
    return {name: _definition({"name": name, **values}, name) for name, values in yaml.safe_load(text).items()}


def parse_suites(sources: str) -> list[Suite]:
    """Suites from a command line: ``NAME``, ``NAME=FILE``, ``FILE``, ``FILE:FIELD``, ``FILE@KIND``, ``suite.yaml``.

    Raises:
        ConfigError: Nothing named, an unknown name or kind, a bad YAML file, or two suites of one name.
    """
    suites: list[Suite] = []
    for source in filter(None, (part.strip() for part in sources.split(","))):
        one = _parse(source)
        if any(one.name == other.name for other in suites):
            raise ConfigError(f"two suites are called {one.name}; their results would go to the same folder")
        suites.append(one)
    if not suites:
        raise ConfigError("--suite names no file")
    return suites


def _parse(source: str) -> Suite:
    named, equals, file = source.partition("=")
    if equals and named in built_in() and not Path(source).exists():
        file, kind = _split_kind(file)
        return dataclasses.replace(built_in()[named], source=file, kind=kind or built_in()[named].kind)
    if source in built_in() and not Path(source).is_file():
        return built_in()[source]
    file, kind = _split_kind(source)
    path = Path(file)
    if path.suffix in (".yaml", ".yml"):
        return read_suite(path)
    path = path if path.exists() else Path(file.rpartition(":")[0] or file)
    if not path.suffix and not path.exists():
        raise ConfigError(f"no suite {source!r}; give a file, or one of {', '.join(built_in())}")
    return Suite(name=path.stem, kind=kind or "unknown", source=file, category="category", target="target")


def _split_kind(source: str) -> tuple[str, str | None]:
    file, at, kind = source.rpartition("@")
    if not at or Path(source).exists():
        return source, None
    if kind not in KINDS:
        raise ConfigError(f"{source}: unknown kind {kind!r}; choose from {', '.join(KINDS)}")
    return file, kind


def read_suite(path: Path) -> Suite:
    """A definition from a YAML file; a relative ``source`` file is looked for beside it.

    Raises:
        ConfigError: Unreadable, no mapping, an unknown field, or a bad value.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of the fields of a suite")
    suite = _definition({"name": path.stem, **values}, str(path))
    if not suite.source:
        raise ConfigError(f"{path}: field 'source' is missing: a file, hub:OWNER/NAME or seeds:KIND")
    beside = path.parent / suite.source
    return dataclasses.replace(suite, source=str(beside)) if beside.is_file() else suite


def _definition(values: dict[str, Any], where: str) -> Suite:
    known = {f.name: f for f in dataclasses.fields(Suite)}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"{where}: unknown field {name!r}; known: {', '.join(known)}")
        wanted = {"filter": dict, "limit": int, "files": list}.get(name, str)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ConfigError(f"{where}: field {name!r} must be of type {wanted.__name__}, not {value!r}")
    if "limit" in values and values["limit"] < 1:
        raise ConfigError(f"{where}: field 'limit' must be at least 1")
    return Suite(**{**values, "files": tuple(values.get("files", ()))})


def load_prompts(suite: Suite) -> list[dict[str, Any]]:
    """The rows of a suite: other fields are kept for files, and left out for sets from the hub.

    Raises:
        DataError: A missing or bad file, no row left, a missing field, or the hub is out of reach.
        ConfigError: A kind of seeds that does not exist.
    """
    if suite.source.startswith("seeds:"):
        kind = suite.source.removeprefix("seeds:")
        if kind not in ("malicious", "benign", "borderline"):
            raise ConfigError(f"suite {suite.name}: no seeds {kind!r}; choose from malicious, benign, borderline")
        seeds = [row for row in seed_instructions(kind) if row.split == "test"]
        rows = [{"id": row.id, "instruction": row.instruction, "category": row.category} for row in seeds]
    elif suite.source.startswith("hub:"):
        from mogu.evaluate.hub import read_hub

        rows = _chosen(suite, read_hub(suite), suite.source, keep=False)
    elif suite.source.startswith("file:"):
        place = suite.source.removeprefix("file:").strip()
        raise DataError(f"suite {suite.name} is on no hub; get it from {place} and give --suite {suite.name}=FILE")
    else:
        rows = _chosen(suite, _read_file(suite), suite.source, keep=True)
    return spread(rows, suite.limit)


def spread(rows: Sequence[T], count: int | None) -> list[T]:
    """At most ``count`` of the rows, evenly spaced: files are often ordered by category."""
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[n * len(rows) // count] for n in range(count)]


def _read_file(suite: Suite) -> list[dict[str, Any]]:
    """Records of a file, each with its instruction."""
    path = Path(suite.source)
    if path.suffix == ".json" and path.is_file() and (records := _json_array(path)) is not None:
        name = suite.field or "instruction"
        for number, record in enumerate(records, 1):
            if not isinstance(record.get(name), str) or not record[name].strip():
                raise DataError(f"{path}: row {number} has no text in field {name!r} (has {', '.join(record)})")
        return [{**record, "instruction": record[name].strip()} for record in records]
    # A user's copy of a public set may call the field "instruction".
    own = suite.field is not None and path.is_file() and (suite.name not in built_in() or _has(path, suite.field))
    return read_prompts(f"{suite.source}:{suite.field}" if own else suite.source)


def _has(path: Path, name: str) -> bool:
    """Whether the first line of a JSONL or CSV file names a field."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        line = file.readline()
    return f'"{name}":' in line.replace(" :", ":") or name in [cell.strip(' "') for cell in line.strip().split(",")]


def _json_array(path: Path) -> list[dict[str, Any]] | None:
    """Objects of a file that holds one JSON array; ``None`` where it holds a line for each."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if text.lstrip().startswith("[") else None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if found is not None and not all(isinstance(record, dict) for record in found):
        raise DataError(f"{path}: expected an array of JSON objects")
    return found


def _chosen(suite: Suite, records: Sequence[dict[str, Any]], where: str, *, keep: bool) -> list[dict[str, Any]]:
    for name in suite.filter:
        if records and not any(name in record for record in records):
            raise DataError(f"{where}: suite {suite.name} is chosen by field {name!r}, which no row has")
    rows = []
    for record in records:
        if not _wanted(record, suite):
            continue
        row = renamed(record) if keep else {"instruction": record["instruction"]}
        if "id" in record:
            row["id"] = record["id"]
        for ours, theirs in (("category", suite.category), ("target", suite.target)):
            if theirs is not None and record.get(theirs) not in (None, ""):
                row[ours] = str(record[theirs])
        asked = _asked(suite, record, where)
        if asked != row["instruction"]:
            row["asked"] = asked
        rows.append(row)
    if not rows:
        raise DataError(f"{where} holds no row for suite {suite.name}")
    return rows


def renamed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt with its own fields of our names under ``prompt_NAME``: its "label" says what it is, not the answer."""
    return {(f"prompt_{key}" if key in OWN_FIELDS else key): value for key, value in record.items()}


def _wanted(record: Mapping[str, Any], suite: Suite) -> bool:
    return all(record.get(k) in (v if isinstance(v, list) else [v]) for k, v in suite.filter.items())


def _asked(suite: Suite, record: Mapping[str, Any], where: str) -> str:
    """What the model is asked: the instruction, wrapped where the suite says so."""
    instruction = str(record["instruction"])
    for name in filter(None, (suite.asked, suite.template)):
        if not isinstance(record.get(name), str) or not record[name].strip():
            raise DataError(f"{where}: a row of suite {suite.name} has no text in field {name!r}")
    if suite.asked is not None:
        return str(record[suite.asked])
    if suite.template is None:
        return instruction
    template = str(record[suite.template])
    if PLACEHOLDER not in template:
        raise DataError(f"{where}: a template of suite {suite.name} lacks {PLACEHOLDER}")
    return template.replace(PLACEHOLDER, instruction)


def asked_text(row: Mapping[str, Any]) -> str:
    """What the model is asked in a row."""
    return str(row.get("asked", row["instruction"]))


Excluder = Callable[[Sequence[str]], list[str | None]]
"""For each text ``"exact"`` or ``"near"`` if training has seen it, else ``None``."""


def gather(suites: Sequence[Suite], *, limit: int | None = None, seen: Excluder | None = None) -> list[Prompts]:
    """The prompts of all suites, without those that training has seen; at most ``limit`` of each that is left.

    Raises:
        DataError: As :func:`load_prompts`, or training has seen every prompt of a suite.
    """
    found = []
    for suite in suites:
        rows, excluded = load_prompts(suite), None
        if seen is not None:
            why = seen([row["instruction"] for row in rows])
            excluded = {"exact": why.count("exact"), "near": why.count("near")}
            rows = [row for row, reason in zip(rows, why, strict=True) if reason is None]
            if not rows:
                raise DataError(
                    f"suite {suite.name}: training has seen all of its prompts; take others, or --keep-seen to ask them"
                )
        found.append(Prompts(suite, spread(rows, limit), excluded))
    return found
