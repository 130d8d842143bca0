"""The metrics of one training step: names and (sum, weight) pairs for `Averages`.

`every_step` is averaged over all steps between two log lines; `now` looks closer, but only at steps that are logged.
The caller switches gradients off: these generators would switch them off and on again at every number. What the names
mean: `trm_core.training.metric_registry`.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from trm_core.config.schema import Config
from trm_core.devices import on_host
from trm_core.dqn.actions import Action
from trm_core.dqn.learner import ReplayedTargets
from trm_core.dqn.schedules import beta_at, epsilon_at, price_share_at, temperature_at, weight_at
from trm_core.losses import StepResult, cycle_error
from trm_core.model.carry import Carry
from trm_core.model.probabilities import log_probabilities
from trm_core.training.episodes import Decision
from trm_core.training.metrics import summed
from trm_core.training.state import TrainingState
from trm_core.training.upkeep import Upkeep

Pair = tuple[str, Tensor, Tensor | float]


def _mean(name: str, values: Tensor) -> Pair:
    return f"train/{name}", *summed(values)


def _over(name: str, values: Tensor, rows: Tensor) -> Pair:
    """The mean of `values` over the rows where `rows` holds."""
    return f"train/{name}", (values * rows).sum(), rows.sum()


def every_step(before: Carry, after: Carry, result: StepResult, decision: Decision, upkeep: Upkeep) -> Iterator[Pair]:
    """before: the carry that the step read; after: the one after the decision."""
    yield _mean("loss", result.loss)
    for name, term in result.terms.items():
        yield (f"train/{name}", term.total, term.weight) if term.total.dim() == 0 else _mean(name, term.mean())
    for depth, accuracy in enumerate(result.mtp_accuracy, start=1):
        yield f"train/mtp_accuracy_d{depth}", accuracy.total, accuracy.weight
    quality, rows, action = result.quality, result.quality.valid, decision.action
    halted = action == Action.HALT
    yield _over("accuracy", quality.accuracy, rows)
    yield _over("exact_accuracy", quality.exact, rows)
    yield _over("final_accuracy", quality.accuracy, halted & rows)
    yield _over("halt_accuracy", ((result.output.halt_logit > 0) == (quality.right > 0.5)).float(), rows)
    if before.labels.shape[1] == 1:
        yield labels_alike(before, result.output.logits.shape[-1])
    bought = after.capsules.expanded & ~after.open_at_start
    yield _over("num_expansions", bought.sum(1), halted)
    yield _over("expansion_cost", (bought * after.capsules.prices).sum(1), halted)
    yield _over("num_open_at_start", after.open_at_start.sum(1), halted)
    yield _over("ponder_cost", after.steps, halted)
    # A GPU has to be waited for with `bincount`, whose result may be longer.
    counts = (action[:, None] == torch.arange(3, device=action.device)).double().sum(0)
    for number, name in enumerate(("action_0_continue", "action_1_halt", "action_2_expand")):
        yield f"train/{name}", counts[number], float(len(action))
    yield "train/action_expand_pct", 100.0 * counts[Action.EXPAND], float(len(action))
    if upkeep.memory_reads is not None:
        yield _mean("memory_reads", upkeep.memory_reads)
    if upkeep.memory is not None:
        yield _mean("memory_writes", torch.tensor(float(upkeep.memory.free + upkeep.memory.evicting)))
        yield _mean("memory_merged", torch.tensor(float(upkeep.memory.merged)))
        yield _mean("memory_evicted", torch.tensor(float(upkeep.memory.evicting)))
    for name, value in upkeep.concepts.items():
        yield _mean(name, torch.tensor(value))


def labels_alike(before: Carry, classes: int) -> Pair:
    """Share of the pairs of rows beginning in this step that have the same label. For P = 1 label per row."""
    new = (before.steps == 1) & (before.labels[:, 0] >= 0)
    counts = torch.zeros(classes, dtype=torch.float64, device=new.device)
    counts.index_add_(0, before.labels[:, 0].clamp(min=0), new.double())
    pairs = new.sum().double()
    return "train/labels_alike", (counts * (counts - 1)).sum(), pairs * (pairs - 1)


def rewards(decision: Decision, curiosity_weight: float) -> Iterator[Pair]:
    """The rewards settled in this step, by component, as means over all completed transitions."""
    settled, ended, parts = decision.settled, decision.ended, decision.reward
    completed = settled.sum() + ended.sum()
    terminal = (decision.terminal * ended).sum()
    yield _over("terminal_reward", decision.terminal, ended)
    yield "train/dqn_reward_extrinsic", (parts.total * settled).sum() + terminal, completed
    intrinsic = (decision.intrinsic * settled).sum() * curiosity_weight
    yield "train/dqn_reward_intrinsic", intrinsic, completed
    yield "train/dqn_reward_mean", (parts.total * settled).sum() + terminal + intrinsic, completed
    yield "train/dqn_reward_terminal", terminal, completed
    for name, values in (
        ("improvement", parts.improvement),
        ("step", parts.step),
        ("expansion_price", parts.price),
        ("expansion_bonus", parts.expansion_bonus),
        ("memory_bonus", parts.memory_bonus),
    ):
        yield f"train/dqn_reward_{name}", (values * settled).sum(), completed
    yield "train/dqn_stored", completed.double(), 1.0


def now(
    state: TrainingState,
    config: Config,
    before: Carry,
    result: StepResult,
    replayed: ReplayedTargets | None,
    decision: Decision,
) -> Iterator[Pair]:
    """The closer look at a step that is logged. before: the carry that the step read."""
    output, quality, model = result.output, result.quality, state.model
    log_p = log_probabilities(output.logits, model.probabilities)
    yield _mean("prediction_entropy", -(log_p.exp() * log_p).sum(-1))
    predicted = torch.bincount(output.logits.argmax(-1).flatten(), minlength=output.logits.shape[-1])
    yield _mean("prediction_top_share", predicted.max() / predicted.sum())
    yield _mean("logit_abs_max", output.logits.abs().max())
    capsules, heads = before.capsules, model.reconstruction
    if heads is not None:
        target = model.capsule_embedding.standardised(capsules.sketches)
        cosine = F.cosine_similarity(heads.sketch(output.z_H), target, dim=-1)
        yield _over("cos_sim_mean", cosine, capsules.valid())
        if heads.checksum is not None and capsules.checksums is not None:
            error = (heads.checksum(output.z_H) - capsules.checksums).square().mean(-1)
            yield _over("checksum_loss", error, capsules.valid())
    cycle = cycle_error(model, capsules, output)
    if cycle is not None:
        yield _over("cycle_loss", cycle, capsules.valid())
    if model.leave_above is not None and model.recursion.H_cycles > 1:
        left = output.cycles < model.recursion.H_cycles
        for reading in output.early:  # while the predictor learns, every cycle is run whatever the earlier ones say
            left = left | (reading.halt_logit > model.leave_above)
        yield _mean("hcycle_exit_pct", 100.0 * left.float())
    going_on = decision.settled
    if model.cmi_head is not None:
        opened = before.pending.opened
        looked = opened.any(1) & quality.valid
        promised = (model.cmi_head(before.z_H, before.x, before.q_state, before.capsules.mask) * opened).sum(1)
        yield _over("cmi_promised", promised, looked)
        yield _over("cmi_measured", before.loss - quality.loss, looked)
    if state.replay is None:
        return
    q_values, dqn = output.q_values, config.dqn
    yield _mean("dqn_q_mean", q_values)
    yield _mean("q_abs_max", q_values.abs().max())
    names = ("continue", "halt", "expand")[: q_values.shape[1]]
    for number, name in enumerate(names):
        yield _mean(f"q_{name}_mean", q_values[:, number])
    log_q = (q_values / temperature_at(dqn, state.step)).log_softmax(-1)
    yield _mean("q_entropy", -(log_q.exp() * log_q).sum(-1))
    yield _over("dqn_accuracy_improvement", quality.accuracy - before.accuracy, going_on)
    settled, reward, ended, terminal = on_host(going_on, decision.reward.total, decision.ended, decision.terminal)
    paid = torch.cat([reward[settled], terminal[ended]])
    if len(paid) > 1:
        yield _mean("dqn_reward_std", paid.std())
    if state.curiosity is not None:
        states = model.q_head.readable(output.q_state)
        yield _mean("curiosity_count_mean", state.curiosity.counts[state.curiosity.cells(states)].double())
    if replayed is not None and result.td_error is not None:
        columns = on_host(replayed.weight, replayed.slot, replayed.action, replayed.target, result.td_error)
        alive = columns[0] > 0
        slot, action, target, error = (column[alive] for column in columns[1:])
        yield _mean("dqn_td_error_mean", error.abs())
        yield _mean("dqn_target_mean", target)
        ages = state.replay.ages(slot)
        yield _mean("dqn_replay_age_mean", ages)
        # A slot of age 0 now holds a state of this step instead of what was replayed.
        looked = (action != Action.HALT) & (ages > 0)
        yield _over("dqn_ended_early", state.replay.ends(slot).float(), looked)
        for number, name in enumerate(names):
            yield _over(f"dqn_td_error_{name}", error, action == number)


@torch.no_grad()
def numbers_now(state: TrainingState, config: Config, device: torch.device) -> dict[str, float]:
    """Metrics that are read from the state."""
    step, dqn = state.step - 1, config.dqn
    values = {
        "train/lr": float(state.optimizers.all[-2].param_groups[0]["lr"]),
        "train/step": float(state.step),
        "train/epoch": state.stream.epoch,
        "train/param_norm": float(torch.stack(torch._foreach_norm(list(state.model.parameters()))).norm()),
        "train/rss_gb": resident_bytes() / 1e9,
    }
    if device.type == "cuda":
        values["train/gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        values["train/gpu_reserved_gb"] = torch.cuda.memory_reserved(device) / 1e9
        torch.cuda.reset_peak_memory_stats(device)
    if state.model.memory is not None:
        found = state.model.memory.statistics()
        values |= {f"train/memory_{name}": float(found[name]) for name in ("filled", "quality", "gate")}
    if state.replay is not None:
        values["train/dqn_epsilon"] = epsilon_at(dqn, step)
        values["train/dqn_temperature"] = temperature_at(dqn, step)
        values["train/dqn_price_level"] = state.model.price_level * price_share_at(dqn, step)
        values["train/dqn_weight"] = weight_at(config.loss_weights.dqn_loss, step / config.training.total_steps)
        values["train/dqn_buffer_size"] = float(len(state.replay))
        values["train/dqn_sampleable_pct"] = 100.0 * state.replay.num_ready(step) / max(len(state.replay), 1)
        values["train/dqn_reward_scale"] = state.scale.value
        values["train/dqn_target_age"] = 0.0 if dqn.target_tau else float(state.step % dqn.target_update_freq)
        if dqn.replay == "prioritized":
            values["train/dqn_beta"] = beta_at(config, step)
        if state.curiosity is not None:
            values["train/dqn_intrinsic_scale"] = state.intrinsic_scale.value
    return values


def resident_bytes() -> int:
    """Resident memory of this process; without /proc, its peak."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
