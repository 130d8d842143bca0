"""Episodes in training: new samples into halted rows, then one decision per row after every reasoning step.

Reads the outputs of the forward pass (`trm_core.losses.StepLoss`), fills the replay buffer, and returns the carry for
the next step. A reward is settled one step after its action, when the effect can be seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trm_core.config.schema import Config
from trm_core.data.batch import CapsuleBatch
from trm_core.devices import on_host
from trm_core.dqn.actions import Action, act_continues, affordable, epsilon_greedy, uniform_valid, valid_actions
from trm_core.dqn.curiosity import Curiosity
from trm_core.dqn.replay import ReplayBuffer
from trm_core.dqn.rewards import RewardScale, StepReward, step_reward, terminal_reward
from trm_core.dqn.schedules import epsilon_at, price_share_at
from trm_core.dqn.selectors import choose_capsules, selection_scores
from trm_core.keyed_random import Purpose, keyed_uniform, keyed_uniforms
from trm_core.losses import StepResult
from trm_core.model.capsule_state import CapsuleState
from trm_core.model.carry import Carry, Pending
from trm_core.model.trm import TinyRecursiveModel


@dataclass(frozen=True)
class Decision:
    """What one decision did, for the metrics. All [B]."""

    action: Tensor
    exploring: Tensor
    opened: Tensor  # [B, k] bool
    reward: StepReward  # of the rewards settled now; see `settled`
    intrinsic: Tensor  # intrinsic rewards of the same actions
    settled: Tensor  # [B] bool: a reward of an earlier action was settled
    terminal: Tensor  # reward of HALT; see `ended`
    ended: Tensor  # [B] bool: the row halted, and has a label


def capsules_of(batch: CapsuleBatch, prices: Tensor) -> CapsuleState:
    """The closed capsule state of a batch."""
    return CapsuleState.closed(
        batch.sketches, batch.children, batch.checksums, batch.mask, prices, batch.parents, batch.puzzles
    )


def labels_of(batch: CapsuleBatch) -> Tensor:
    """[B, P]: labels [N] become one answer per row."""
    return batch.labels[:, None] if batch.labels.dim() == 1 else batch.labels


class Episodes:
    """The rows of one process. `first_row` is the global number of its first row."""

    def __init__(
        self,
        model: TinyRecursiveModel,
        config: Config,
        prices: Tensor,
        replay: ReplayBuffer | None,
        curiosity: Curiosity | None = None,
        first_row: int = 0,
    ) -> None:
        self.model, self.config, self.prices, self.replay = model, config, prices, replay
        self.curiosity, self.first_row = curiosity, first_row
        self.scale, self.intrinsic_scale = RewardScale(), RewardScale()

    def draws(self, step: int, purpose: Purpose, rows: int, width: int) -> Tensor:
        """[rows, width]: draws for each row of this process."""
        numbers = torch.arange(rows, device=self.prices.device) + self.first_row
        return keyed_uniform(self.config.training.seed, step, purpose, numbers, width)

    def draws_of_rows(self, step: int, rows: int, *purposes: Purpose) -> Tensor:
        """[len(purposes), rows]: one draw per purpose and row of this process."""
        numbers = torch.arange(rows, device=self.prices.device) + self.first_row
        return keyed_uniforms(self.config.training.seed, step, purposes, numbers)

    def initial_carry(self, batch: CapsuleBatch) -> Carry:
        """A carry whose rows all wait for their first sample; `batch` (B rows) only gives the shapes."""
        rows, k = batch.sketches.shape[:2]
        z_H, z_L = (z.clone() for z in self.model.first_latents(rows))
        zeros = torch.zeros(rows, device=z_H.device)
        numbers = torch.zeros(rows, dtype=torch.int64, device=z_H.device)
        return Carry(
            z_H=z_H,
            z_L=z_L,
            x=torch.zeros_like(z_H),
            steps=numbers,
            min_steps=numbers,
            halted=torch.ones(rows, dtype=torch.bool, device=z_H.device),
            capsules=capsules_of(batch, self.prices),
            open_at_start=torch.zeros(rows, k, dtype=torch.bool, device=z_H.device),
            labels=labels_of(batch),
            price=torch.ones_like(zeros),
            q_state=torch.zeros(rows, self.model.q_head.state_width, device=z_H.device),
            q_memory=self.model.first_q_memory(rows),
            utility=zeros,
            accuracy=zeros,
            loss=zeros,
            pending=Pending(numbers - 1, numbers, zeros, torch.zeros(rows, k, dtype=torch.bool, device=z_H.device)),
        )

    def begin(self, carry: Carry, batch: CapsuleBatch, step: int, rows: Tensor | None = None) -> Carry:
        """Put the samples of `batch` into the halted rows (one for each) and count the coming step of every row.

        rows: the numbers of the halted rows, if they are known: a GPU has to be waited for to find them.
        """
        rows = (carry.halted.nonzero().squeeze(1) if rows is None else rows).to(carry.halted.device, non_blocking=True)
        total = len(carry.halted)
        each_step = self.config.dqn.halt_exploration_draw == "step"
        if len(rows) == 0:
            min_steps = carry.min_steps
            if each_step:
                min_steps = self.steps_before_halt(
                    *self.draws_of_rows(step, total, Purpose.HOLD_EPISODE, Purpose.HOLD_STEPS)
                )
            return replace(carry, steps=carry.steps + 1, min_steps=min_steps)
        fresh = capsules_of(batch, self.prices)
        fresh = fresh.opened(self.open_at_start(fresh, rows, total, step))
        prices, held, held_for = self.draws_of_rows(
            step, total, Purpose.PRICE, Purpose.HOLD_EPISODE, Purpose.HOLD_STEPS
        )
        min_steps = self.steps_before_halt(held, held_for)
        price = self.model.price_level * self.config.dqn.price_spread ** (2 * prices[rows] - 1)
        price = price * price_share_at(self.config.dqn, step)
        z_H, z_L = self.model.first_latents(len(rows))

        def put(old: Tensor, new: Tensor) -> Tensor:
            return old.index_copy(0, rows, new.to(old.dtype))

        def put_optional(old: Tensor | None, new: Tensor | None) -> Tensor | None:
            return None if old is None or new is None else put(old, new)

        old = carry.capsules
        capsules = CapsuleState(
            put(old.sketches, fresh.sketches),
            put_optional(old.children, fresh.children),
            put_optional(old.checksums, fresh.checksums),
            put_optional(old.mask, fresh.mask),
            put(old.expanded, fresh.expanded),
            self.prices,
            put_optional(old.parents, fresh.parents),
            put_optional(old.puzzles, fresh.puzzles),
        )
        halted = carry.halted
        pending = replace(
            carry.pending,
            slot=carry.pending.slot.masked_fill(halted, -1),
            opened=carry.pending.opened & ~halted[:, None],
        )
        return replace(
            carry,
            z_H=put(carry.z_H, z_H),
            z_L=put(carry.z_L, z_L),
            steps=carry.steps.masked_fill(halted, 0) + 1,
            min_steps=min_steps if each_step else put(carry.min_steps, min_steps[rows]),
            halted=torch.zeros_like(halted),
            capsules=capsules,
            open_at_start=put(carry.open_at_start, fresh.expanded),
            labels=put(carry.labels, labels_of(batch)),
            price=put(carry.price, price),
            q_memory=carry.q_memory.masked_fill(halted[:, None], 0.0),
            pending=pending,
        )

    def open_at_start(self, fresh: CapsuleState, rows: Tensor, total: int, step: int) -> Tensor:
        """[n, k] bool: capsules to open at the start. In a share of the episodes, a random set at the episode's own
        rate, within the budget. rows [n]: those of the `total` rows that begin.
        """
        dqn, k = self.config.dqn, fresh.expanded.shape[1]
        if fresh.children is None or self.config.arch.enable_capsule_expansion is False:
            return torch.zeros_like(fresh.expanded)
        episode, rate = self.draws_of_rows(step, total, Purpose.OPEN_EPISODE, Purpose.OPEN_RATE)[:, rows]
        chosen = episode < dqn.random_open_fraction
        draws = self.draws(step, Purpose.OPEN_CAPSULE, total, k)[rows]
        wanted = affordable(fresh, dqn.budget) & chosen[:, None] & (draws < rate[:, None])
        return choose_capsules(1.0 - draws, fresh, wanted, k, dqn.budget)

    def steps_before_halt(self, held: Tensor, held_for: Tensor) -> Tensor:
        """[B] int64: 1, or for a share of the rows a random number in 2..T, so that late steps are trained too.
        held, held_for: draws [B] that decide on the row and on the number.
        """
        steps = 2 + (held_for * (self.config.arch.max_steps - 1)).long()
        return torch.where(held < self.config.dqn.halt_exploration, steps, 1)

    @torch.no_grad()
    def decide(self, carry: Carry, result: StepResult, step: int) -> tuple[Carry, Decision]:
        """Settle the rewards of the last actions, choose and carry out the next ones."""
        dqn = self.config.dqn
        output, quality, capsules = result.output, result.quality, carry.capsules
        utility = quality.probability if dqn.reward_signal == "probability" else quality.accuracy
        action, valid, exploring = self.choose(carry, result, step)
        opened = torch.zeros_like(capsules.expanded)
        if self.replay is not None and self.model.q_head.num_actions > Action.EXPAND:
            opened = self.select(carry, result, action, exploring, step)
        reward = step_reward(
            dqn,
            carry.utility,
            utility,
            carry.pending.action,
            carry.pending.cost,
            carry.price,
            remembers=self.model.memory is not None,
        )
        terminal = terminal_reward(dqn, quality.right)
        # A row without a label has no utility, so there is nothing to learn from its actions.
        settled, ended = (carry.pending.slot >= 0) & quality.valid, (action == Action.HALT) & quality.valid
        intrinsic = torch.zeros_like(utility)
        if self.replay is not None and self.curiosity is not None:
            states = self.model.q_head.readable(output.q_state)
            intrinsic = self.curiosity.bonus(states)
            self.curiosity.observe(states)
        decision = Decision(action, exploring, opened, reward, intrinsic, settled, terminal, ended)
        slot = torch.zeros_like(carry.steps)
        if self.replay is not None:
            slot = self.store(self.replay, carry.pending, output.q_state, valid, decision, step)
        following = replace(
            carry,
            z_H=output.z_H.detach(),
            z_L=output.z_L.detach(),
            x=output.x.detach(),
            halted=action == Action.HALT,
            capsules=capsules.opened(opened),
            q_state=output.q_state,
            q_memory=output.q_memory,
            utility=utility,
            accuracy=quality.accuracy,
            loss=quality.loss.detach(),
            pending=Pending(slot, action, (opened * self.prices).sum(1), opened),
        )
        return following, decision

    def store(
        self, replay: ReplayBuffer, pending: Pending, states: Tensor, valid: Tensor, decision: Decision, step: int
    ) -> Tensor:
        """Push the states [B, S], and settle what the decision settles: actions that are `pending`, and those that end
        now. Returns the slots [B] of the states.
        """
        # The buffer keeps its books in host memory.
        allowed, before, last, action, settled, ended, reward, terminal, intrinsic = on_host(
            valid,
            pending.slot,
            pending.action,
            decision.action,
            decision.settled,
            decision.ended,
            decision.reward.total,
            decision.terminal,
            decision.intrinsic,
        )
        slots = replay.push(states, allowed, step)
        # Both in one call: a call costs more than its rows.
        replay.complete(
            torch.cat([before, slots]),
            torch.cat([settled, ended]),
            torch.cat([last, action]),
            torch.cat([reward, terminal]),
            torch.cat([intrinsic, torch.zeros_like(intrinsic)]),
            torch.cat([slots, slots]),
            torch.cat([torch.zeros_like(settled), ended]),
        )
        if self.curiosity is not None:
            self.intrinsic_scale.update(intrinsic[settled])
        self.scale.update(torch.cat([reward[settled], terminal[ended]]))
        return slots.to(states.device, non_blocking=True)

    def choose(self, carry: Carry, result: StepResult, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Actions [B], which were valid [B, A], and which were exploratory [B]."""
        dqn, T, output = self.config.dqn, self.config.arch.max_steps, result.output
        valid = valid_actions(carry.capsules, carry.steps, T, self.model.q_head.num_actions, dqn.budget)
        held_back = (carry.steps < carry.min_steps) & (carry.steps < T)
        if self.replay is None:
            going = act_continues(output) & (carry.steps < T)
            return torch.where(going | held_back, Action.CONTINUE, Action.HALT), valid, held_back & ~going
        explore, choice = self.draws_of_rows(step, len(carry.steps), Purpose.EXPLORE, Purpose.EXPLORE_ACTION)
        action, exploring = epsilon_greedy(output.q_values, valid, epsilon_at(dqn, step), explore, choice)
        held = (action == Action.HALT) & held_back
        instead = valid.clone()
        instead[:, Action.HALT] = False
        return torch.where(held, uniform_valid(instead, choice), action), valid, exploring | held

    def select(self, carry: Carry, result: StepResult, action: Tensor, exploring: Tensor, step: int) -> Tensor:
        """[B, k] bool: capsules that the EXPAND rows open. Exploring rows open random ones, so that every capsule is
        tried.
        """
        dqn, capsules = self.config.dqn, carry.capsules
        rows, k = capsules.expanded.shape
        random = self.draws(step, Purpose.EXPLORE_CAPSULE, rows, k)
        scores = selection_scores(dqn.expansion_selector, self.model, result.output, capsules, random)
        scores = torch.where(exploring[:, None], random, scores)
        allowed = affordable(capsules, dqn.budget) & (action == Action.EXPAND)[:, None]
        return choose_capsules(scores, capsules, allowed, dqn.expand_count, dqn.budget)
