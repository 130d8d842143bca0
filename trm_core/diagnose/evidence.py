"""Everything a diagnosis may look at, gathered from a run directory, a config, or a training run in progress.

Nothing here imports torch, so a finished run is diagnosed in a fraction of a second on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trm_core.config.load import load_recorded
from trm_core.diagnose.data_facts import DataFacts
from trm_core.diagnose.puzzle_facts import facts_of
from trm_core.diagnose.read_metrics import read_metrics
from trm_core.diagnose.run_facts import RunFacts, read_run_facts
from trm_core.diagnose.series import Metrics
from trm_core.errors import DataError, TrmError
from trm_core.training import run_dir
from trm_core.training.checkpoint_verify import CheckpointFacts, checkpoint_facts

if TYPE_CHECKING:
    from trm_core.config.schema import Config

MOST_FILES = 4  # whose samples are examined; labels are counted in all files
_HASHED_BYTES = 100 << 20


@dataclass(frozen=True)
class Mixed:
    """A further training file. `weight`: how many of its samples are drawn for each of the first file's; `data`: None
    if the file cannot be opened.
    """

    data: DataFacts | None
    weight: float = 1.0


@dataclass
class Evidence:
    """What is known. A part that is None or empty is unknown; `Check.needs` names the parts."""

    config: Config | None = None
    metrics: Metrics = field(default_factory=lambda: Metrics({}))
    data: DataFacts | None = None
    run: RunFacts | None = None
    checkpoints: list[CheckpointFacts] | None = None
    notes: list[str] = field(default_factory=list)  # what could not be read, and why
    processes: int = 1  # that train together
    others: list[Mixed] = field(default_factory=list)  # further training files; `data` is the first
    evaluated: str | None = None  # path of the evaluated file; None: the first

    def has(self, part: str) -> bool:
        """Whether a part that checks may need is known."""
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
    def label_shares(self) -> NDArray[np.float64] | None:
        """[classes]: share of each class among the training samples as they are drawn, over all files. None if labels
        or a file are missing.
        """
        shares: NDArray[np.float64] = np.zeros(0)
        for part in (Mixed(self.data), *self.others):
            labels = None if part.data is None else part.data.labels.get("train")
            if part.data is None or labels is None or not len(labels):
                return None
            counts = np.bincount(labels, minlength=len(shares))
            drawn = part.weight * part.data.visits
            shares = np.pad(shares, (0, len(counts) - len(shares))) + drawn * counts / len(labels)
        return shares / shares.sum()

    @property
    def alike(self) -> float | None:
        """Probability that two random training samples have the same label."""
        shares = self.label_shares
        return None if shares is None else float((shares**2).sum())

    @property
    def trained_as_evaluated(self) -> float | None:
        """Share of the drawn training samples that come from the evaluated file; 1 if there is one training file, or if
        the evaluated file is not among them. None if a file is missing.
        """
        parts = [Mixed(self.data), *self.others]
        found = [part.data for part in parts if part.data is not None]
        if not self.others or len(found) < len(parts):
            return None if self.others else 1.0
        path = self.evaluated or str(self.file.file.path)
        drawn = [part.weight * data.visits for part, data in zip(parts, found, strict=True)]
        ours = [count for count, data in zip(drawn, found, strict=True) if str(data.file.path) == path]
        return sum(ours) / sum(drawn) if ours else 1.0

    @property
    def evaluated_rows(self) -> int:
        """Number of samples in the evaluated split; 0 if unknown."""
        for data in (self.data, *(other.data for other in self.others)):
            if data is not None and self.evaluated in (None, str(data.file.path)):
                return data.file.rows.get(data.held_out or "", 0)
        return 0

    @property
    def top_share(self) -> float | None:
        """Training accuracy of always giving the most frequent label."""
        shares = self.label_shares
        return None if shares is None else float(shares.max())

    @property
    def guessing(self) -> float | None:
        """Training loss of a model that knows only how frequent the classes are: their entropy, in nats."""
        shares = self.label_shares
        return None if shares is None else float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())

    @property
    def file_has_children(self) -> bool | None:
        """None if the file is unknown."""
        return None if self.data is None else self.data.file.num_children > 0

    @property
    def learning_steps(self) -> int:
        """Steps in which the model learns; afterwards only the policy does."""
        training = self.settings.training
        return training.predictor_steps or training.total_steps

    @property
    def rows_per_process(self) -> float:
        """Rows of the global batch that each process has: its own replay buffer is filled from these."""
        return self.settings.training.global_batch_size / self.processes

    @property
    def facts(self) -> RunFacts:
        """The run directory, for checks that need it."""
        assert self.run is not None
        return self.run


def of_run(path: Path) -> Evidence:
    """Everything in a run directory. Raises TrmError if it is not one, or if its config.yaml cannot be read."""
    run_dir.require_run(path)
    run = read_run_facts(path)
    about_data: list[str] = []
    files, held_out = _files(run.dataset)
    # Data files from strangers are examined in a separate process. Meanwhile the rest is read here.
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(_open_all, files, held_out, about_data)
        config = load_recorded(path / run_dir.CONFIG).config
        metrics = read_metrics(path / run_dir.METRICS, config.training.eval_interval)
        data, others = opened.result()
    found = checkpoint_facts(path, _HASHED_BYTES)
    evidence = Evidence(config, metrics, data, run, found, list(metrics.notes), run.processes, others, held_out[0])
    if sum(one.bytes for one in found) > _HASHED_BYTES:
        evidence.notes.append(f"large checkpoints: only sizes were compared; trm checkpoints {path} reads every byte")
    evidence.notes += about_data
    return evidence


def of_config(config: Config) -> Evidence:
    """What is known before a run: the config, and its data if they have been built."""
    evidence = Evidence(config)
    if config.data.source is not None:
        # Imported here because the builders are slow to import, and diagnosing a run does not need them.
        from trm_core.data.source import cached_path

        built = cached_path(config.data)
        if built.exists():
            evidence.data = _open(str(built), None, evidence.notes)
        else:
            evidence.notes.append(f"{config.data.source} is not built yet: --probe builds it")
        return evidence
    paths = config.data.path if isinstance(config.data.path, list) else [config.data.path]
    files = [(one, 1.0) if isinstance(one, str) else (one.path, one.weight) for one in paths if one is not None]
    if files:
        held_out = (files[0][0], config.data.eval_split) if config.data.eval_path is None else (None, None)
        evidence.data, evidence.others = _open_all(files, held_out, evidence.notes)
        evidence.evaluated = config.data.eval_path
    return evidence


def _files(dataset: Mapping[str, Any]) -> tuple[list[tuple[str, float]], tuple[str | None, str | None]]:
    """The training files that dataset.json names, with their weights, and the file and split that the run evaluates.
    No files if it does not have the expected form.
    """
    try:
        files = [(str(one["path"]), float(one.get("weight", 1.0))) for one in dataset["train"]]
        path, split = dataset["eval"]["path"], dataset["eval"]["split"]
    except (KeyError, AttributeError, TypeError, ValueError):
        return [], (None, None)
    ordered = all(0 < weight < math.inf for _, weight in files)
    return files if ordered else [], (path, split if isinstance(split, str) else None)


def _open_all(
    files: Sequence[tuple[str, float]], held_out: tuple[str | None, str | None], notes: list[str]
) -> tuple[DataFacts | None, list[Mixed]]:
    """The first training file, and the others that are mixed with it."""
    if not files:
        notes.append("dataset.json does not say where the data lie")
        return None, []
    what = "the data were" if len(files) == 1 else "one of the files was"
    opened = [_open(path, held_out[1] if path == held_out[0] else None, notes, what) for path, _ in files]
    if len(files) > MOST_FILES:
        left = ", ".join(path for path, _ in files[MOST_FILES:])
        notes.append(f"of {len(files)} files the first {MOST_FILES} were looked at: trm inspect-dataset reads {left}")
    return opened[0], [
        Mixed(data, weight / files[0][1]) for data, (_, weight) in zip(opened[1:], files[1:], strict=True)
    ]


def _open(path: str, split: str | None, notes: list[str], what: str = "the data were") -> DataFacts | None:
    try:
        return facts_of(Path(path), split)
    except (DataError, OSError, ValueError) as error:  # ValueError: an invalid path in a stranger's dataset.json
        notes.append(f"{what} not looked at: {error.message if isinstance(error, TrmError) else error}")
        return None
