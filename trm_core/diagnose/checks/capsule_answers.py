"""Checks of the labels of capsule files: missing in training, or contradicted by another training file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trm_core.data.fields import IGNORE_LABEL
from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.copies import row_hashes
from trm_core.diagnose.data_facts import DataFacts
from trm_core.diagnose.evidence import Evidence

_FEW = 20  # labels, or samples that are in two files: of fewer nothing is said


def labels_missing(evidence: Evidence) -> Finding:
    """Labels to be ignored in training, beside the evaluated split. Many in both may be meant so."""
    train, other = (_ignored(rows) for rows in (evidence.file.training_rows, evidence.file.held_out_rows))
    if train is None:
        return unknown("the file has no labels, or too few")
    text = f"{100 * train:.3g} % of the training labels are to be ignored (-100)"
    text += "" if other is None else f", and {100 * other:.3g} % of the held-out ones"
    numbers = {"ignored": train} | ({} if other is None else {"ignored_held_out": other})
    more = train - (other or 0.0)
    if more < 0.2 or (other is None and train < 0.9):
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL if more > 0.5 else Verdict.WARN,
        text,
        "likely",
        numbers,
        "A sample without a label teaches no answer, but takes its row of every batch. A condition the wrong way "
        "round, or a join that finds few keys, looks like this.",
        advice="check where labels become -100; leave samples without one out of the file if they are meant to be",
    )


def files_contradict(evidence: Evidence) -> Finding:
    """Samples of the first training file that another one has with other labels. That equal samples of one file differ
    may belong to the task; between files it can be no more frequent than that.
    """
    first = _labelled(evidence.file)
    others = [other.data for other in evidence.others if other.data is not None]
    if first is None or not others:
        return unknown("there is one training file, or no single label for each sample")
    within = _agreement(*first, *first, but_itself=True)
    worst, common, path = 1.0, 0, ""
    for data in others:
        theirs = _labelled(data)
        if theirs is None:
            continue
        agree, count = _agreement(*first, *theirs)
        if count >= _FEW and agree <= worst:
            worst, common, path = agree, count, str(data.file.path)
    if not path:
        return ok("no two training files have samples in common")
    usual = within[0] if within[1] >= _FEW else 1.0
    text = (
        f"of {common} samples that {evidence.file.file.path} and {path} have in common, {100 * worst:.3g} % have the "
        "same label in both"
    )
    numbers = {"agree": worst, "common": float(common), "agree_within": usual}
    if worst > 0.9 * usual:
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL if worst < 0.7 * usual else Verdict.WARN,
        text,
        numbers=numbers,
        why="The files contradict each other, so that no model can satisfy both. One of them may be older than a new "
        "numbering of the classes.",
        advice="leave the older file out of data.path; build all files with one list of classes",
    )


FILES = Check(
    "files-contradict",
    ("accuracy", "config"),
    "accuracy stops short of 100 %, or is below chance, with several training files",
    "ours",
    ("config", "data"),  # not data alone, as such checks look at one file after the other
    files_contradict,
)


def _ignored(rows: dict[str, np.ndarray]) -> float | None:
    """Share of the labels that are to be ignored; padding has none. None where there are too few."""
    if "labels" not in rows:
        return None
    labels = rows["labels"][rows["mask"]] if rows["labels"].ndim == 2 and "mask" in rows else rows["labels"]
    return float((labels == IGNORE_LABEL).mean()) if labels.size >= _FEW else None


def _labelled(data: DataFacts) -> tuple[NDArray[np.uint64], NDArray[np.int64]] | None:
    """Hashes and labels of training samples; None without a label for each sample."""
    rows = data.training_rows
    if "labels" not in rows or rows["labels"].ndim != 1:
        return None
    labels = rows["labels"].astype(np.int64)
    known = labels != IGNORE_LABEL
    hashes = row_hashes([rows[name] for name in ("sketches", "children") if name in rows])
    return hashes[known], labels[known]


def _agreement(
    hashes: NDArray[np.uint64],
    labels: NDArray[np.int64],
    others: NDArray[np.uint64],
    their_labels: NDArray[np.int64],
    *,
    but_itself: bool = False,
) -> tuple[float, int]:
    """(how often samples have the label of an equal one among the others, number of samples that have an equal one).
    but_itself: both are the same samples, so none is compared with itself.
    """
    if not len(hashes) or not len(others):
        return 1.0, 0
    mine, theirs = slice(len(hashes)), slice(len(hashes), None)
    inputs = np.unique(np.concatenate([hashes, others]), return_inverse=True)[1]
    named = np.unique(np.concatenate([labels, their_labels]), return_inverse=True)[1]
    both = np.unique(inputs * (named.max() + 1) + named, return_inverse=True)[1]
    equal, alike = (np.bincount(key[theirs], minlength=key.max() + 1)[key[mine]] - but_itself for key in (inputs, both))
    there = equal > 0
    return (float((alike[there] / equal[there]).mean()) if there.any() else 1.0), int(there.sum())
