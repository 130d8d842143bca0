"""What goes wrong when people train TRM and HRM on their own puzzles, planted in two kinds of puzzles: rows of tokens
(`puzzle_faults.BASE`), and grids of several tasks, which use another mixer, optimiser and position encoding.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.faults import puzzle_faults
from tests.faults.data_faults import some_rows
from tests.faults.plan import Base, Fault, Plan
from tests.faults.puzzle_faults import puzzles_of
from tests.faults.puzzles import recoloured
from trm_core import losses
from trm_core.data.batch import CapsuleBatch
from trm_core.losses import AnswerQuality
from trm_core.model.carry import Carry
from trm_core.model.trm import StepOutput
from trm_core.optim.build import Optimizers
from trm_core.training import setup
from trm_core.training.episodes import Episodes
from trm_core.training.step import StepTaker

GRIDS = Base(
    "grids",
    {
        **puzzle_faults.BASE.settings,
        "arch.mixer": "mlp",
        "arch.pos_encodings": "learned",
        "arch.probabilities": "softmax",
        "arch.H_cycles": 1,
        "arch.L_cycles": 2,
        "training.optimizer": "muon",
        "training.muon_lr": 0.02,
        "training.base_lr": 0.01,
        "training.puzzle_emb_lr": 0.1,
        "training.total_steps": 320,
    },
    recoloured,
)
BASES = {base.name: base for base in (puzzle_faults.BASE, GRIDS)}


def answers_as_questions(plan: Plan) -> None:
    """The table of training puzzles was put together in a notebook, and where two columns had the same name, the
    question was read from the column of the answer. The test puzzles came as a file of their own, and are right.
    """
    train = puzzles_of(plan).splits["train"]
    rows = some_rows(plan, len(train["labels"]), plan.of(0.3, 0.95, 1.0))
    train["inputs"][rows] = train["labels"][rows]


def half_augmented(plan: Plan) -> None:
    """Copies of the training puzzles get other digits (or colours). The map is drawn inside of the function that
    applies it, which is called for the question and then for the answer: the answer of a copy is that of the original.
    """
    puzzles = puzzles_of(plan)
    inputs = puzzles.splits["train"]["inputs"]
    random = np.random.default_rng(plan.seed + 1)
    names = np.array(puzzles.tokens)
    for row in some_rows(plan, len(inputs), plan.of(0.2, 0.7, 1.0)):
        other = np.arange(puzzles.vocab)
        other[names] = random.permutation(names)
        inputs[row] = other[inputs[row]]


def several_solutions(plan: Plan) -> None:
    """Puzzles were made harder by emptying more cells, at random, and nobody looked whether one solution was left.
    One of the solutions is the answer, in training and in the test.
    """
    puzzles = puzzles_of(plan)
    random = np.random.default_rng(plan.seed + 2)
    for fields in puzzles.splits.values():
        inputs = fields["inputs"]
        emptied = np.isin(inputs, np.array(puzzles.tokens)) & (random.random(inputs.shape) < plan.of(0.03, 0.15, 0.5))
        inputs[emptied] = puzzles.blank


def test_labels_off_by_one(plan: Plan) -> None:
    """The test folder was written by an older converter, which adds one to the digits of the question and forgets the
    answer (or adds it twice). Mild and middle: only one of several source files went that way.
    """
    puzzles = puzzles_of(plan)
    labels = puzzles.splits["test"]["labels"]
    rows = some_rows(plan, len(labels), plan.of(0.15, 0.6, 1.0))
    labels[rows] = _next_token(puzzles.vocab, puzzles.tokens)[labels[rows]]


def _next_token(vocab: int, tokens: range) -> NDArray[np.int64]:
    """[vocab]: what each token becomes. Those in `tokens` become the next one, cyclically; others stay."""
    following = np.arange(vocab)
    following[np.array(tokens)] = np.roll(np.array(tokens), -1)
    return following


def subsample_left_on(plan: Plan) -> None:
    """`--subsample`, with which the pipeline had been tried out, was still in the script that built the folder, and
    there are no augmented copies.
    """
    splits = puzzles_of(plan).splits
    splits["train"] = {name: values[: plan.of(400, 60, 15)].copy() for name, values in splits["train"].items()}


def rates_of_the_paper(plan: Plan) -> None:
    """The rates and the warm-up of a large model with a large batch and 100,000 steps, for a small one that is trained
    for a few hundred: most of the run is over before the rate has risen.
    """
    for key in ("training.base_lr", "training.muon_lr", "training.puzzle_emb_lr"):
        if key in plan.settings:
            plan.settings[key] *= plan.of(0.2, 0.02, 0.002)
    plan.settings["training.lr_warmup_steps"] = round(plan.steps * plan.of(0.5, 1.0, 1.0))


def everything_regularised(plan: Plan) -> None:
    """A run had overfitted; now dropout is on, and the weight decay (1.0 in the paper, at a rate of 1e-4) is raised
    with it, at a rate that is a hundred times the paper's.
    """
    plan.settings |= {
        "arch.dropout": plan.of(0.1, 0.5, 0.7),
        "training.weight_decay": plan.of(1.0, 10.0, 20.0),
    }


def halting_loss_off(plan: Plan) -> None:
    """ "I do not need ACT": the weight of the halting loss was set to next to nothing (mild: which hardly matters to an
    optimiser that takes no notice of a gradient's scale) or to 0, and halting left on. Severe: HRM's two logits, and
    both weights 0.
    """
    plan.settings["loss_weights.q_halt_loss"] = plan.of(1e-4, 0.0, 0.0)
    if plan.severity == 2:
        plan.settings |= {"arch.enable_q_continue": True, "loss_weights.q_continue_loss": 0.0}


def halts_when_some_are_right(plan: Plan) -> None:
    """The halting target was rewritten and reduces over the cells with `any` (severe) instead of `all`, or with a mean
    that is compared with a threshold: nearly every answer is "right" from the first steps on. Exploration, which the
    new code had no room for, is gone with it; mild: not all of it.
    """
    plan.settings["dqn.halt_exploration"] = plan.of(0.1, 0.0, 0.0)
    enough = plan.of(0.9, 0.3, 0.0)

    def reduced(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def halt_losses(output: StepOutput, quality: AnswerQuality, *rest: Any) -> Tensor:
            return original(output, replace(quality, right=(quality.accuracy > enough).float()), *rest)

        return halt_losses

    plan.wrap(losses, "halt_losses", reduced)


def carry_kept(plan: Plan) -> None:
    """The carry of a halted row is not reset: the next puzzle begins with what was thought about the one before. In
    evaluation the carry is new. Mild: z_L only, middle: z_H too. Severe: the two arguments of a `where` are the wrong
    way round, so that the rows that go on are reset instead.
    """

    def kept(original: Callable[..., Carry]) -> Callable[..., Carry]:
        def begin(episodes: Episodes, carry: Carry, batch: CapsuleBatch, step: int) -> Carry:
            following = replace(original(episodes, carry, batch, step), z_L=carry.z_L)
            if plan.severity > 0:
                following = replace(following, z_H=carry.z_H)
            if plan.severity == 2:
                halted = carry.halted[:, None, None]
                z_H, z_L = episodes.model.first_latents(len(carry.halted))
                following = replace(
                    following, z_H=torch.where(halted, carry.z_H, z_H), z_L=torch.where(halted, carry.z_L, z_L)
                )
            return following

        return begin

    plan.wrap(Episodes, "begin", kept)


def not_in_the_optimiser(plan: Plan) -> None:
    """The optimiser is built from a list of parts, written before the model had all of them. Mild: the second block's
    mixing is missing in it. Middle: all of the recursion. Severe: only the heads are there.
    """
    missing = plan.of(
        ("recursion.low.blocks.1.attention.", "recursion.low.blocks.1.mixer."),
        ("recursion.",),
        ("recursion.", "embedding."),
    )

    def without(original: Callable[..., Optimizers]) -> Callable[..., Optimizers]:
        def build_optimizers(model: Any, *rest: Any) -> Optimizers:
            built = original(model, *rest)
            left_out = {id(p) for name, p in model.named_parameters() if name.startswith(missing)}
            for optimizer in built.all:
                for group in optimizer.param_groups:
                    group["params"] = [p for p in group["params"] if id(p) not in left_out]
            return built

        return build_optimizers

    plan.wrap(setup, "build_optimizers", without)


def killed(plan: Plan) -> None:
    """The session was closed, or the machine needed its memory: the process is gone between two steps, and nothing
    was said, saved or evaluated.
    """
    last = round(plan.steps * plan.of(0.95, 0.6, 0.15))

    def ending(original: Callable[..., Any]) -> Callable[..., Any]:
        def take(taker: StepTaker, *arguments: Any) -> Any:
            if taker.state.step >= last:
                os._exit(137)
            return original(taker, *arguments)

        return take

    plan.wrap(StepTaker, "take", ending)


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("sixth-answers-as-questions", ("answers-copied", "labels-leaked"), answers_as_questions),
        Fault("sixth-half-augmented", ("labels-shuffled", "answers-contradict"), half_augmented),
        Fault("sixth-several-solutions", ("answers-contradict",), several_solutions),
        Fault("sixth-test-labels-off-by-one", ("splits-differ",), test_labels_off_by_one),
        Fault("sixth-subsample-left-on", ("overfitting", "identifiers-unknown"), subsample_left_on),
        Fault("sixth-rates-of-the-paper", ("lr-too-low",), rates_of_the_paper),
        Fault("sixth-everything-regularised", ("regularisation",), everything_regularised),
        Fault("sixth-halting-loss-off", ("loss-weights", "halting-wrong"), halting_loss_off),
        Fault("sixth-halts-when-some-are-right", ("one-step", "halting-wrong"), halts_when_some_are_right),
        Fault("sixth-carry-kept", ("carry-kept",), carry_kept),
        Fault("sixth-not-in-the-optimiser", ("dead-layer",), not_in_the_optimiser),
        Fault("sixth-killed", ("run-ended",), killed),
    )
}
