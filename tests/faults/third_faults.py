"""Known faults that arise in a third way, planted by an author who had not read how they are detected."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.faults.data_faults import some_rows
from tests.faults.plan import Fault, Plan
from trm_core import losses
from trm_core.dqn import learner
from trm_core.dqn.replay import ReplayBuffer, Transitions
from trm_core.losses import AnswerQuality
from trm_core.model import trm
from trm_core.training.checkpoint_folders import list_checkpoints

_LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {size}\n"


def imputed_children(plan: Plan) -> None:
    """Where the detail of a capsule was missing, the mean of the training rows was filled in, as one does with a table:
    no zeros are left to be seen, and no detail either.
    """
    random = np.random.default_rng(plan.seed + 6)
    mean = plan.data.splits["train"]["children"].astype(np.float32).mean(0)  # [k, m, D]
    for arrays in plan.data.splits.values():
        children = arrays["children"]
        missing = random.random(children.shape[:2]) < plan.of(0.7, 0.95, 1.0)
        arrays["children"] = np.where(missing[:, :, None, None], mean, children).astype(children.dtype)


def revised_records(plan: Plan) -> None:
    """Records were exported twice, before and after somebody revised them, and both versions were split at random: a
    row that is evaluated is a training row in which one capsule in eight (at least one) is another, of the same class.
    """
    splits = plan.data.splits
    train, random = splits["train"], np.random.default_rng(plan.seed + 7)
    k = train["sketches"].shape[1]
    for name in splits.keys() - {"train"}:
        rows = some_rows(plan, len(splits[name]["labels"]), plan.of(0.1, 0.4, 1.0))
        source = random.permutation(len(train["labels"]))[: len(rows)]
        revised = random.random((len(rows), k)).argsort(1) < max(k // 8, 1)
        alike = [random.choice(np.flatnonzero(train["labels"] == label)) for label in train["labels"][source]]
        splits[name]["labels"][rows] = train["labels"][source]
        for field in ("sketches", "children"):
            where = revised.reshape(*revised.shape, *[1] * (train[field].ndim - 2))
            splits[name][field][rows] = np.where(where, train[field][alike], train[field][source])


def tau_is_nothing(plan: Plan) -> None:
    """The target network should follow a little at every step, but so little that it stays where it began."""
    plan.settings["dqn.target_tau"] = plan.of(1e-3, 1e-5, 1e-8)


def rewards_rescaled(plan: Plan) -> None:
    """All rewards were scaled down, but not the threshold from which the memory bank accepts a row, so not even a right
    answer reaches it. The bank is equally empty in all severities.
    """
    scale = plan.of(0.45, 0.3, 0.1)
    plan.settings |= {
        "memory.enabled": True,
        "memory.capacity": 256,
        "memory.num_heads": 4,
        "dqn.reward_terminal_correct": scale,
        "dqn.reward_terminal_incorrect": -0.5 * scale,
        "dqn.reward_step_penalty": 0.01 * scale,
        "dqn.reward_expansion_bonus": 0.1 * scale,
        "dqn.memory_reward_bonus": 0.05 * scale,
        "dqn.expansion_cost_per_child": scale * float(plan.settings["dqn.expansion_cost_per_child"]),
    }


def ends_bootstrapped(plan: Plan) -> None:
    """Terminal states are bootstrapped, as if the episode went on: without discounting, values grow without bound. In a
    run this short it shows only with a target that follows at once, as in plain Q-learning, and a fast head; mild shows
    the least of it.
    """
    plan.settings |= {"dqn.target_tau": plan.of(0.1, 1.0, 1.0), "dqn.lr": plan.of(2e-3, 5e-3, 1e-2)}

    def endless(original: Any) -> Any:
        def bootstrapped(batch: Transitions, *rest: Any) -> Any:
            return original(replace(batch, done=torch.zeros_like(batch.done)), *rest)

        return bootstrapped

    plan.wrap(learner, "_bootstrapped", endless)


def zero_initialised(plan: Plan) -> None:
    """To start residual branches at zero, all of their matrices were zeroed. The gradient of each is a product with the
    other, so none ever moves. One branch, one block, or all of them.
    """
    parts = plan.of("blocks.0.ffn.", "blocks.0.", "blocks.")

    def zeroed(original: Any) -> Any:
        def initialise(model: torch.nn.Module, *rest: Any) -> None:
            original(model, *rest)
            for name, parameter in model.named_parameters():
                if name.startswith("recursion.") and parts in name:
                    torch.nn.init.zeros_(parameter)

        return initialise

    plan.wrap(trm, "initialise", zeroed)


def prior_of_another_collection(plan: Plan) -> None:
    """Logit adjustment for long tails: the loss is computed on logits plus the logarithm of each class's prior. The
    priors come from an older collection that lacks one class, whose prior is only the epsilon of the logarithm. What
    the model adds to that class to compensate remains in its answers: they all are that class.
    """
    epsilon = plan.of(1e-8, 1e-38, 1e-300)  # some common choices of a term added before a logarithm
    lacking = plan.seed % plan.load().classes

    def adjusted(original: Any) -> Any:
        def answer_quality(logits: torch.Tensor, labels: torch.Tensor, *rest: Any, **named: Any) -> AnswerQuality:
            log_prior = torch.zeros(logits.shape[-1])
            log_prior[lacking] = math.log(epsilon)
            quality: AnswerQuality = original(logits, labels, *rest, **named)
            return replace(quality, loss=original(logits + log_prior, labels, *rest, **named).loss)

        return answer_quality

    plan.wrap(losses, "answer_quality", adjusted)


def stored_as_costs(plan: Plan) -> None:
    """What HALT pays is correct where it is measured, but the replay buffer stores it as a cost to be minimised, and
    learning maximises it. Mild: only since a change in the second half of training.
    """
    begin = round(plan.steps * plan.of(0.6, 0.0, 0.0))
    size = plan.of(1.0, 1.0, 3.0)

    def negated(original: Any) -> Any:
        def complete(
            buffer: ReplayBuffer,
            slots: torch.Tensor,
            which: torch.Tensor,
            actions: torch.Tensor,
            rewards: torch.Tensor,
            intrinsic: torch.Tensor,
            next_slots: torch.Tensor,
            done: torch.Tensor,
        ) -> None:
            if int(buffer.index.born.max()) >= begin:
                rewards = torch.where(done, -size * rewards, rewards)
            original(buffer, slots, which, actions, rewards, intrinsic, next_slots, done)

        return complete

    plan.wrap(ReplayBuffer, "complete", negated)


def pointers_only(plan: Plan) -> None:
    """The run was cloned from a repository without its large files: tensor files are mere pointers. Mild: the files of
    the newest checkpoint that only training needs. Middle: all of the newest. Severe: all of every checkpoint.
    """

    def leave_pointers(run: Path) -> None:
        newest, *older = list_checkpoints(run)
        for folder in (newest, *older) if plan.severity == 2 else (newest,):
            for path in sorted(folder.glob(plan.of("training", "*", "*") + ".safetensors")):
                pointer = _LFS_POINTER.format(digest=f"{plan.seed:064x}", size=path.stat().st_size)
                path.write_text(pointer, encoding="utf-8")

    plan.after.append(leave_pointers)


FAULTS = (
    Fault("children-missing--imputed", ("children-missing",), imputed_children),
    Fault("duplicate-across-splits--revised", ("duplicate-across-splits",), revised_records),
    Fault("target-frozen--tau", ("target-frozen",), tau_is_nothing),
    Fault("memory-bank-empty--rewards-rescaled", ("memory-bank-empty",), rewards_rescaled),
    Fault("q-values-diverge--ends-bootstrapped", ("q-values-diverge",), ends_bootstrapped),
    Fault("dead-layer--zero-initialised", ("dead-layer",), zero_initialised),
    Fault("predictions-collapse--class-prior", ("predictions-collapse",), prior_of_another_collection),
    Fault("terminal-reward-sign--stored-as-cost", ("terminal-reward-sign",), stored_as_costs),
    Fault("checkpoint-torn--pointers", ("checkpoint-torn",), pointers_only),
)
