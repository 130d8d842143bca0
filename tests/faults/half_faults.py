"""Partial collapse: some classes are never given as an answer, while the others are learned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tests.faults.plan import Fault, Plan
from trm_core import losses
from trm_core.losses import AnswerQuality


def weight_of_absent_classes(plan: Plan) -> None:
    """The loss is weighted by class, and the weights were counted in an older collection in which every second class
    (mild: one of them) did not occur: these weigh nothing, and are never learned.
    """
    classes = plan.load().classes
    absent = torch.arange(plan.seed % 2, classes, 2)[: plan.of(1, classes, classes)]
    weights = torch.ones(classes)
    weights[absent] = plan.of(0.0, 0.0, -0.1)  # severe: below the mean that was subtracted

    def weighted(original: Any) -> Any:
        def answer_quality(logits: torch.Tensor, labels: torch.Tensor, *rest: Any, **named: Any) -> AnswerQuality:
            quality: AnswerQuality = original(logits, labels, *rest, **named)
            weight = weights[labels.clamp(min=0)].mean(1)
            return replace(quality, loss=weight * quality.loss)

        return answer_quality

    plan.wrap(losses, "answer_quality", weighted)


FAULTS = (Fault("predictions-collapse--absent-classes", ("predictions-collapse",), weight_of_absent_classes),)
