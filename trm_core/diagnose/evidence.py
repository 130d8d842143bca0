"""Everything a diagnosis may look at, gathered from a run directory, from a config, or from training under way.

Nothing here imports torch: a finished run is diagnosed in a fraction of a second, on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trm_core.config import load_config
from trm_core.diagnose.data_facts import DataFacts
from trm_core.diagnose.puzzle_facts import facts_of
from trm_core.diagnose.read_metrics import read_metrics
from trm_core.diagnose.run_facts import RunFacts, read_run_facts
from trm_core.diagnose.series import Metrics
from trm_core.errors import DataError, TrmError
from trm_core.training import run_dir
from trm_core.training.checkpoint_folders import CheckpointFacts, checkpoint_facts

if TYPE_CHECKING:
    from trm_core.config.schema import Config

_HASHED_BYTES = 100 << 20


@dataclass
class Evidence:
    """What is known. A part that is None, or without entries, is not: `Check.needs` names the parts."""

    config: Config | None = None
    metrics: Metrics = field(default_factory=lambda: Metrics({}))
    data: DataFacts | None = None
    run: RunFacts | None = None
    checkpoints: list[CheckpointFacts] | None = None
    notes: list[str] = field(default_factory=list)  # what could not be read, and why
    processes: int = 1  # that train together

    def has(self, part: str) -> bool:
        """Whether a part that a check needs is there."""
        if part == "metrics":
            return bool(self.metrics.series)
        if part == "checkpoints":
            return self.checkpoints is not None
        return getattr(self, part) is not None

    @property
    def settings(self) -> Config:
        """The config, for checks that need it."""
        assert self.config is not None
        return self.config

    @property
    def file(self) -> DataFacts:
        """The data, for checks that need it."""
        assert self.data is not None
        return self.data

    @property
    def file_has_children(self) -> bool | None:
        """None where the file is not known."""
        return None if self.data is None else self.data.file.num_children > 0

    @property
    def learning_steps(self) -> int:
        """Steps in which the model learns: afterwards only the policy does."""
        training = self.settings.training
        return training.predictor_steps or training.total_steps

    @property
    def rows_per_process(self) -> float:
        """Each process has a replay buffer of its own for these."""
        return self.settings.training.global_batch_size / self.processes

    @property
    def facts(self) -> RunFacts:
        """The run directory, for checks that need it."""
        assert self.run is not None
        return self.run


def of_run(path: Path) -> Evidence:
    """Everything in a run directory. Raises TrmError if it is none, or if its config.yaml cannot be read."""
    run_dir.require_run(path)
    run = read_run_facts(path)
    about_data: list[str] = []
    # A stranger's file is looked at by a process of its own. Meanwhile there is enough to read.
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(_data, run.dataset, about_data)
        config = load_config(path / run_dir.CONFIG).config
        metrics = read_metrics(path / run_dir.METRICS, config.training.eval_interval)
        data = opened.result()
    found = checkpoint_facts(path, _HASHED_BYTES)
    evidence = Evidence(config, metrics, data, run, found, list(metrics.notes), run.processes)
    if sum(one.bytes for one in found) > _HASHED_BYTES:
        evidence.notes.append(f"large checkpoints: only sizes were compared; trm checkpoints {path} reads every byte")
    evidence.notes += about_data
    return evidence


def of_config(config: Config) -> Evidence:
    """What is known before a run: the config, and its data if it is built already."""
    evidence = Evidence(config)
    if config.data.source is not None:
        # Imported here: a run that is diagnosed has its file, and the builders take a while to import.
        from trm_core.data.source import cached_path

        built = cached_path(config.data)
        if built.exists():
            evidence.data = _open(str(built), None, evidence.notes)
        else:
            evidence.notes.append(f"{config.data.source} is not built yet: --probe builds it")
        return evidence
    first = config.data.path if not isinstance(config.data.path, list) else config.data.path[0]
    if first is not None:
        path = first if isinstance(first, str) else first.path
        evidence.data = _open(path, None, evidence.notes)
    return evidence


def _data(dataset: Mapping[str, Any], notes: list[str]) -> DataFacts | None:
    """The first training file that dataset.json names, with the split that the run evaluates."""
    try:
        path, held_out = str(dataset["train"][0]["path"]), dataset["eval"]
        split = held_out["split"] if held_out["path"] == path else None
    except (KeyError, IndexError, TypeError):
        notes.append("dataset.json does not say where the data lie")
        return None
    return _open(path, split if isinstance(split, str) else None, notes)


def _open(path: str, split: str | None, notes: list[str]) -> DataFacts | None:
    try:
        return facts_of(Path(path), split)
    except (DataError, OSError, ValueError) as error:  # the last: a path that is none, in a stranger's dataset.json
        notes.append(f"the data were not looked at: {error.message if isinstance(error, TrmError) else error}")
        return None
