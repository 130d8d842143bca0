"""Checks that an exported form gives what the model gives: on real samples, after every reasoning step."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trm_core.dqn.actions import Action
from trm_core.errors import CheckFailed
from trm_core.export.step import ReasoningStep, Tensors
from trm_core.inference.predictor import Predictor
from trm_core.inference.trained import Trained

TOLERANCE = 1e-3
_COMPARED = ("z_H", "z_L", "q_memory", "logits", "confidence", "halt_logit", "q_values")
Fields = dict[str, Any]  # arrays [n, ...] by name
RunStep = Callable[[Tensors], Tensors]


@dataclass(frozen=True)
class Verification:
    """How far an exported form is from the model. Differences are absolute, over all outputs; z has an RMS of 1."""

    form: str
    samples: int
    largest_difference: float
    by_step: list[float]
    differing_decisions: int  # rows and steps at which the action or the opened capsules differ
    differing_answers: int  # of the whole loop, run by the folder's own runner
    tolerance: float = TOLERANCE

    @property
    def holds(self) -> bool:
        """One decision per hundred samples may differ, because two actions may have equal values up to rounding."""
        within = self.largest_difference <= self.tolerance
        return within and max(self.differing_decisions, self.differing_answers) <= self.samples // 100


def compare_steps(
    form: str, trained: Trained, fields: Fields, run: RunStep, answers: list[dict[str, Any]]
) -> Verification:
    """Compare `run` with the model's own step on the same state, along the model's own path through the samples;
    `answers`: what the form's whole loop gave. Raises CheckFailed if they differ too much.
    """
    step = ReasoningStep(trained)
    n = len(fields["tokens"] if "tokens" in fields else fields["sketches"])
    state = step.first_state(n)
    given = {name: torch.as_tensor(values, device=trained.device) for name, values in fields.items()}
    state |= {name: given[name].float() for name in ("sketches", "checksums") if name in step.input_names}
    state |= {name: given[name] for name in ("mask", "parents", "tokens", "puzzles") if name in step.input_names}
    state["price"] = torch.full((n,), trained.model.price_level, device=trained.device)
    rows = torch.arange(n, device=trained.device)
    expanded = torch.zeros(n, trained.model.data.num_capsules, dtype=torch.bool, device=trained.device)
    by_step: list[float] = []
    decisions = 0
    with torch.no_grad():
        for number in range(1, trained.max_steps + 1):
            state["steps"] = torch.full_like(rows, number)
            if "children" in step.input_names:
                detail = given["children"][rows].float()
                state |= {"children": torch.where(expanded[:, :, None, None], detail, 0.0), "expanded": expanded}
            inputs = {name: state[name].contiguous() for name in step.input_names}
            live, other = step.step(inputs), run(inputs)
            by_step.append(max(_apart(live[name], other[name]) for name in _COMPARED if name in step.output_names))
            differs = live["action"] != other["action"].to(live["action"])
            if "opening" in live:
                differs = differs | (live["opening"] != other["opening"].to(live["opening"])).any(1)
                expanded = expanded | live["opening"]
            decisions += int(differs.sum())
            keep = live["action"] != Action.HALT
            if not bool(keep.any()):
                break
            state |= {name: live[name] for name in ("z_H", "z_L", "q_memory") if name in step.input_names}
            rows, expanded = rows[keep], expanded[keep]
            state = {name: values[keep] for name, values in state.items()}
    differing = compare_answers(form, trained, fields, answers).differing_answers
    found = Verification(form, n, max(by_step), by_step, decisions, differing)
    if not found.holds:
        raise CheckFailed(
            f"{form} does not match the model: outputs differ by up to {found.largest_difference:.3g} (allowed: "
            f"{TOLERANCE:g}), {decisions} decisions and {differing} of {n} answers differ",
            hint="nothing was written; please report this with the run's config.yaml",
        )
    return found


def compare_answers(form: str, trained: Trained, fields: Fields, answers: list[dict[str, Any]]) -> Verification:
    """The same for whole answers only: prediction, steps and opened capsules."""
    differing = sum(
        (list(a.prediction), a.steps, sorted(a.opened)) != (b["prediction"], b["steps"], sorted(b["opened"]))
        for a, b in zip(Predictor(trained).predict(**fields), answers, strict=True)
    )
    return Verification(form, len(answers), 0.0, [], 0, differing)


def run_folder(folder: Path, runner: str, fields: Fields) -> tuple[RunStep, list[dict[str, Any]]]:
    """The step of an exported form and the answers of its whole loop, from the runner in the folder itself."""
    model = runpy.run_path(str(folder / runner), run_name="runner")["Model"](folder)

    def run(inputs: Tensors) -> Tensors:
        arrays = {name: value.cpu().numpy() for name, value in inputs.items()}
        return {name.removeprefix("next_"): torch.from_numpy(value) for name, value in model.run(arrays).items()}

    return run, model(
        **{name: values for name, values in fields.items() if name in (*model.spec["inputs"], "children")}
    )


def as_record(found: list[Verification]) -> dict[str, Any]:
    """`verification.json`."""
    return {"tolerance": TOLERANCE, "forms": [asdict(one) for one in found]}


def _apart(a: Tensor, b: Tensor) -> float:
    if a.numel() == 0:
        return 0.0
    difference = (a.float() - b.to(a.device).float()).abs()
    return float(np.inf) if not bool(difference.isfinite().all()) else float(difference.max())
