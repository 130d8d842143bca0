"""Which class is taken for which: counts, the rows behind them, and what is said of each class."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from trm_core.data.fields import IGNORE_LABEL
from trm_core.evaluation.answer_shares import Confusion, confusion
from trm_core.evaluation.by_class import OneClass, classes_of
from trm_core.evaluation.intervals import wilson_interval

CLASSES = 5


def counted(answers: Tensor, labels: Tensor) -> Confusion:
    """In batches of 7, as a split is read; answers of the type that an outcome keeps."""
    return confusion(answers.view(len(answers), -1).to(torch.uint8), list(labels.split(7)), CLASSES)


@pytest.mark.parametrize("shape", [(60,), (60, 4)])
def test_it_is_what_counting_one_by_one_finds(shape: tuple[int, ...]) -> None:
    random = torch.Generator().manual_seed(0)
    answers, labels = torch.randint(CLASSES, (2, *shape), generator=random)
    labels[torch.rand(shape, generator=random) < 0.3] = IGNORE_LABEL
    found = counted(answers, labels)
    pairs = Counter(zip(labels.flatten().tolist(), answers.flatten().tolist(), strict=True))
    expected = [[pairs[label, answer] for answer in range(CLASSES)] for label in range(CLASSES)]
    assert found.matrix.tolist() == expected
    assert any(label == IGNORE_LABEL for label, _ in pairs), "some places do not count"
    rows = Counter(label for row in labels.view(60, -1).tolist() for label in set(row))
    assert found.rows.tolist() == [rows[label] for label in range(CLASSES)]


def test_what_is_said_of_each_class() -> None:
    labels = torch.tensor([0] * 10 + [1] * 4 + [2] * 3)
    answers = torch.tensor([0] * 7 + [2, 2, 1] + [1] * 4 + [0, 3, 2])
    first, second, third, fourth, fifth = classes_of(counted(answers, labels), list("abcde"))
    assert first == OneClass("a", 10, 10, 0.7, *wilson_interval(7, 10), instead="c", instead_share=0.2)
    assert second == OneClass("b", 4, 4, 1.0, *wilson_interval(4, 4), instead=None, instead_share=None)
    assert (third.instead, third.instead_share) == ("a", 1 / 3), "of answers that are as frequent the first"
    assert fourth == OneClass("d", 0, 0, None, None, None, None, None), "answered once, and never the label"
    assert fifth.count == 0


def test_capsules_of_one_sample_make_no_interval_narrower() -> None:
    labels = torch.arange(2).repeat(20)
    answers = torch.where(torch.arange(40) % 5 == 0, 1 - labels, labels)
    alone = classes_of(counted(answers, labels), list("abcde"))[0]
    many = classes_of(counted(answers[:, None].repeat(1, 6), labels[:, None].repeat(1, 6)), list("abcde"))[0]
    assert (many.count, many.samples) == (6 * alone.count, alone.samples)
    assert (many.right, many.low, many.high) == (alone.right, alone.low, alone.high)
