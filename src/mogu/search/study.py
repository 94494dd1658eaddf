"""Trials on disk: an optuna study in a journal file, where a finished trial stays finished whatever happens next."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from mogu.data.rows import write_text
from mogu.errors import ConfigError
from mogu.search.choice import OBJECTIVES
from mogu.search.space import Setting, own_values

STARTUP_TRIALS = 5
"""The recipe as it is and trials drawn at random, before the sampler learns from what it has seen."""
_INPUTS, _RECORD = "inputs", "record.json"
_OVER = (TrialState.COMPLETE, TrialState.PRUNED)


class Trials:
    """The trials of one search.

    Multi-objective TPE (Ozaki et al. 2022, JAIR 73) proposes values. Its random numbers depend on the seed and on the
    number of the trial only, so that an interrupted search goes on as it would have gone on.
    """

    def __init__(self, file: Path, found: Sequence[Setting], inputs: Mapping[str, str], seed: int) -> None:
        """
        Args:
            file: The journal.
            found: What is varied.
            inputs: What the search depends on, by name.
            seed: See above.

        Raises:
            ConfigError: The journal is that of another search, or cannot be read.
        """
        self.settings, self.seed, self.file = found, seed, file
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        file.parent.mkdir(parents=True, exist_ok=True)
        _mend(file)
        try:
            storage = JournalStorage(JournalFileBackend(str(file)))
            self.study = optuna.create_study(
                storage=storage, study_name="search", directions=["minimize"] * len(OBJECTIVES), load_if_exists=True
            )
        except (ValueError, KeyError) as error:
            raise ConfigError(f"cannot read {file}: {error}; delete {file.parent} to search anew") from error
        self._check(inputs)
        self._catch_up()

    def _check(self, inputs: Mapping[str, str]) -> None:
        before = self.study.user_attrs.get(_INPUTS)
        if before is None:
            self.study.set_user_attr(_INPUTS, dict(inputs))
            return
        for name, value in inputs.items():
            if before.get(name) != value:
                raise ConfigError(
                    f"{self.file.parent} holds a search of another {name}; choose another --out or delete it"
                )

    def folder(self, number: int) -> Path:
        """Where a trial keeps its recipe, losses and record."""
        return self.file.parent / "trials" / f"{number:04}"

    @property
    def records(self) -> list[dict[str, Any]]:
        """What was recorded of each finished trial, in order."""
        return [_read(self.folder(trial.number)) for trial in self._of(*_OVER)]

    def _of(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)

    def next(self) -> tuple[int, dict[str, float]]:
        """Number and values of the trial to run: one that was begun and not finished, else a new one."""
        for begun in self._of(TrialState.RUNNING):
            if {one.name for one in self.settings} == set(begun.params):
                return begun.number, dict(begun.params)
            self.study.tell(begun.number, state=TrialState.FAIL)  # it was interrupted while its values were drawn
        if not self._of(*_OVER):
            self.study.enqueue_trial(own_values(self.settings), skip_if_exists=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the option is experimental in one version of optuna, and not in another
            self.study.sampler = optuna.samplers.TPESampler(
                seed=1000 * self.seed + len(self.study.get_trials(deepcopy=False)),
                multivariate=True,
                n_startup_trials=STARTUP_TRIALS,
            )
            trial = self.study.ask(fixed_distributions={one.name: _distribution(one) for one in self.settings})
        return trial.number, dict(trial.params)

    def finish(self, number: int, record: Mapping[str, Any]) -> None:
        """Keep the record of a trial; its ``objectives`` go to the sampler, ``None`` if it was given up."""
        write_text(self.folder(number) / _RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        self._tell(number, record)

    def _tell(self, number: int, record: Mapping[str, Any]) -> None:
        if record["objectives"] is None:
            self.study.tell(number, state=TrialState.PRUNED)
        else:
            self.study.tell(number, list(record["objectives"]))

    def _catch_up(self) -> None:
        """Tell the study of trials whose record was written just before an interruption."""
        for begun in self._of(TrialState.RUNNING):
            if (self.folder(begun.number) / _RECORD).is_file():
                self._tell(begun.number, _read(self.folder(begun.number)))


def _read(folder: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read {folder / _RECORD}: {error}; delete the search's folder to search anew"
        ) from error
    return record


def _distribution(one: Setting) -> BaseDistribution:
    if one.choices:
        return CategoricalDistribution(one.choices)
    return FloatDistribution(one.low, one.high, log=True)


def _mend(file: Path) -> None:
    """Drop a last line that was never written to its end, or the next one would be appended to it; and a stale lock."""
    if file.is_file():
        text = file.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            half = file.with_suffix(".tmp")
            half.write_bytes(whole)
            half.replace(file)
    for lock in file.parent.glob(f"{file.name}.lock*"):
        lock.unlink()
