"""Where samples come from, whatever the form of the file, and how their answers are recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trm_core.data.fields import IGNORE_LABEL
from trm_core.inference.samples import Answer, Sample, names_of
from trm_core.inference.trained import Trained


@dataclass(frozen=True)
class Source:
    """`start(row)` yields the samples from that row on, and None where the next has not arrived yet; `record` makes
    what is written of an answer, from a sample, its answer, and whether probabilities are wanted.

    `rows` None: unknown, and the source can be read only once. `bulk`: by default, answers go into a file.
    """

    name: str
    rows: int | None
    start: Callable[[int], Iterator[Sample | None]]
    identity: dict[str, Any]
    record: Callable[[Sample, Answer, bool], dict[str, Any]]
    bulk: bool = True


def identity_of_file(path: Path) -> dict[str, Any]:
    """What identifies a file and changes with it."""
    stat = path.stat()
    return {"data": str(path.resolve()), "split": None, "content_hash": [stat.st_size, stat.st_mtime_ns]}


def capsule_record(sample: Sample, answer: Answer, trained: Trained, probabilities: bool = False) -> dict[str, Any]:
    """For JSON: the answer; `id` if the sample has one; if its label is known, `target` and whether it was found, with
    several answers also the share that was.
    """
    found = answer.as_record(probabilities)
    told: dict[str, Any] = {} if sample.id is None else {"id": sample.id}
    told |= {name: found.pop(name) for name in ("prediction", "label")}
    if sample.labels is None:
        return told | found
    known = sample.labels != IGNORE_LABEL
    hits = np.asarray(answer.prediction)[known] == sample.labels[known]
    names = [
        names_of([number], trained.class_names)[0] if there else None
        for number, there in zip(sample.labels.tolist(), known.tolist(), strict=True)
    ]
    told |= {"target": names[0] if len(names) == 1 else names, "right": bool(hits.all())}
    if len(names) > 1:
        told["accuracy"] = round(float(hits.mean()), 6)
    return told | found


def capsule_recorder(trained: Trained) -> Callable[[Sample, Answer, bool], dict[str, Any]]:
    return lambda sample, answer, probabilities: capsule_record(sample, answer, trained, probabilities)


def known_labels(labels: Any, trained: Trained) -> np.ndarray | None:
    """[answers] int64: class of each answer of one sample, IGNORE_LABEL where it has none; None if none has one."""
    values = np.asarray(labels, np.int64).reshape(-1)
    shape = trained.model.data
    values = np.where((values >= 0) & (values < shape.num_classes), values, IGNORE_LABEL)
    return values if len(values) == shape.answers and bool((values != IGNORE_LABEL).any()) else None
