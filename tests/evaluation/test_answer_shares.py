"""How often classes are answered beside how often they are labels: what is chance and what is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trm_core.data.fields import IGNORE_LABEL
from trm_core.evaluation.answer_shares import AnswerShares, answer_shares


def balanced(classes: int, each: int) -> Tensor:
    return torch.arange(classes).repeat(each)


def of(answers: Tensor, labels: Tensor, classes: int) -> AnswerShares:
    """In batches of 7, as a split is read."""
    return answer_shares(answers.view(len(answers), -1), list(labels.split(7)), classes)


def test_right_answers_leave_nothing_out() -> None:
    labels = balanced(4, 50)
    assert of(labels, labels, 4) == AnswerShares(0.25, 0.25, 0.0, 0.0)


def test_half_of_the_classes_left_out() -> None:
    labels = balanced(4, 50)
    assert of(labels // 2 * 2, labels, 4) == AnswerShares(0.5, 0.25, 0.5, 0.0)


def test_classes_that_are_missing_together_are_less_of_a_chance() -> None:
    """Eighteen labels of a class prove nothing about it, and enough about half of the classes."""
    labels = balanced(10, 18)
    assert of(labels // 2 * 2, labels, 10).left_out == 0.5
    assert of(torch.where(labels == 3, 4, labels), labels, 10).left_out == 0.0


def test_one_class_far_too_often() -> None:
    labels = balanced(10, 40)
    answers = torch.where(torch.arange(400) % 3 > 0, 7, labels)
    found = of(answers, labels, 10)
    given = float((answers == 7).float().mean())
    assert found.top_answer == pytest.approx(given)
    assert found.in_excess == pytest.approx(given - 0.1)
    assert found.left_out == 0.0


@pytest.mark.parametrize(("rows", "classes"), [(20, 4), (300, 300), (1000, 2052)])
def test_few_labels_of_a_class_prove_nothing(rows: int, classes: int) -> None:
    """Random answers of random labels: some classes are missing by chance."""
    random = torch.Generator().manual_seed(0)
    answers, labels = torch.randint(classes, (2, rows), generator=random)
    found = of(answers, labels, classes)
    assert (found.left_out, found.in_excess) == (0.0, 0.0)


def test_a_rare_class_may_be_left_out() -> None:
    """In doubt the frequent class is the better answer."""
    labels = torch.cat([torch.zeros(400, dtype=torch.int64), torch.ones(100, dtype=torch.int64)])
    assert of(torch.zeros_like(labels), labels, 2).left_out == 0.0
    assert of(torch.ones_like(labels), labels, 2).left_out == pytest.approx(0.8)


def test_unlabelled_places_do_not_count() -> None:
    labels = balanced(4, 50).view(100, 2).clone()
    answers = labels.clone()
    answers[:, 1] = 3
    labels[:, 1] = IGNORE_LABEL
    kept = labels[:, 0]
    assert of(answers, labels, 4) == of(kept, kept, 4)


def test_answers_of_one_row_count_as_one() -> None:
    """A row of many answers that all miss a class is one row."""
    labels = balanced(2, 50)
    answers = torch.zeros_like(labels)
    assert of(answers, labels, 2).left_out == 0.5
    assert of(answers.view(2, 50), labels.view(2, 50), 2).left_out == 0.0
