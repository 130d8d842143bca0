"""The list of metrics: every number that a run logs, with its meaning, unit and healthy range, by group.

A table, not code; read it through `trm_core.training.metric_registry`. Imports nothing heavy, because `trm diagnose`
reads it too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Reference:
    """A quantity that is not logged itself, but that a range may be relative to."""

    label: str
    meaning: str


# What the bounds of a range may be multiples of, besides a config key or another metric.
REFERENCES = {
    "chance": Reference("chance", "the accuracy of always giving the most frequent label"),
    "log_classes": Reference("ln(classes)", "the natural logarithm of the number of classes"),
    "log_actions": Reference("ln(actions)", "the natural logarithm of the number of actions"),
    "first": Reference("its first value", "the metric's own first value in the run"),
    "median": Reference("its median", "the metric's own median over the run so far"),
}


@dataclass(frozen=True)
class Range:
    """Healthy values: `low` and `high` are inclusive bounds, `above` is an exclusive one.

    Where `of` is set, bounds are multiples of it: a config key, a metric's name or one of REFERENCES. `note` begins
    with the source ("pipeline.md 5.4: ..." or "ours: ...") and says when the range holds.
    """

    note: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    of: str = ""

    def contains(self, value: float, reference: float = 1.0) -> bool:
        """Whether `value` is healthy; NaN and Inf never are. `reference`: the value of `of`."""
        return (
            math.isfinite(value)
            and (self.low is None or value >= self.low * reference)
            and (self.high is None or value <= self.high * reference)
            and (self.above is None or value > self.above * reference)
        )


@dataclass(frozen=True)
class Metric:
    """What a logged number means. A name with <placeholders> stands for a family; `members` lists it, if it is fixed.

    Unless the meaning says otherwise, a line holds the mean since the line before it.
    """

    name: str
    meaning: str
    unit: str = ""
    healthy: Range | None = None
    group: str = ""
    members: tuple[str, ...] = ()


def _group(title: str, *metrics: Metric) -> tuple[Metric, ...]:
    return tuple(replace(metric, group=title) for metric in metrics)


_POSITIVE = "ours: at zero nothing of the kind happens"

LOSSES = _group(
    "Losses",
    Metric(
        "train/loss", "weighted sum of all terms", "", Range("ours: a jump precedes a divergence", high=3, of="first")
    ),
    Metric(
        "train/lm_loss",
        "cross-entropy of the answer",
        "nats",
        Range(
            "pipeline.md Workflow 5: begins at ln V and falls (V: classes); its < 5.0 and < 3.0 belong to V = 2052",
            high=1,
            of="log_classes",
        ),
    ),
    Metric(
        "train/q_halt_loss",
        "binary cross-entropy of the halt logit against 'the answer is right'",
        "nats",
        Range("ours: after the first steps; ln 2 is a halt head that knows nothing", high=0.7),
    ),
    Metric("train/q_continue_loss", "cross-entropy of HRM's continue logit against its bootstrapped target", "nats"),
    Metric(
        "train/reconstruction_loss",
        "how badly sketches and checksums are predicted from z_H",
        "",
        Range("ours: falls", high=1, of="first"),
    ),
    Metric("train/cycle_loss", "squared error of the sketches decoded from the projected children", "standard units^2"),
    Metric("train/checksum_loss", "squared error of the checksums predicted from z_H"),
    Metric("train/cmi_loss", "squared error of the predicted fall of the loss after an opening", "nats^2"),
    Metric(
        "train/dqn_loss",
        "TD loss of replayed transitions; absent before the buffer has dqn.buffer_min_size",
        "",
        Range("pipeline.md Issue 3: above 0 from there on", above=0),
    ),
    Metric("train/dqn_weight", "weight of dqn_loss in the sum (now; a range rises over training)"),
    Metric(
        "train/entropy_bonus",
        "negative entropy of softmax(Q / temperature) in the replayed states; absent before there is train/dqn_loss",
        "nats",
    ),
    Metric("train/vq_loss", "squared distance between z_H and its nearest concept (commitment)"),
    Metric("train/mtp_loss", "cross-entropy of the answers of following positions, mean over depths", "nats"),
    Metric("train/rnd_loss", "squared error of the predictor of random features (RND)"),
)

ANSWERS = _group(
    "Answers",
    Metric(
        "train/accuracy",
        "share of right answers over all reasoning steps",
        "share",
        Range("pipeline.md Issue 8: above guessing; its 5 % to 60 % belong to one task", low=1, of="chance"),
    ),
    Metric("train/exact_accuracy", "share of rows with every answer right", "share"),
    Metric(
        "train/final_accuracy",
        "share of right answers of rows that halted",
        "share",
        Range("ours: halting should not pick the wrong ones", low=0.9, of="train/accuracy"),
    ),
    Metric(
        "train/halt_accuracy",
        "rows whose halt logit has the right sign: positive where the answer (with several labels: most of it) is "
        "right",
        "share",
        Range("ours: after the first steps; a coin reaches half", low=0.5, high=1),
    ),
    Metric(
        "train/labels_alike",
        "share of pairs of samples begun in the same step that have the same label; absent where rows have several "
        "labels",
        "share",
        Range("ours: the sum of the squared shares of the labels, as for any two samples", low=0, high=1),
    ),
    Metric("train/mtp_accuracy_d<depth>", "share of right answers for the position <depth> places ahead", "share"),
    Metric(
        "train/prediction_entropy",
        "mean entropy of an answer's softmax",
        "nats",
        Range(
            "pipeline.md Workflow 5: above 1.0 at V = 2052, that is 0.13 ln V; only while accuracy is near chance",
            low=0.13,
            of="log_classes",
        ),
    ),
    Metric(
        "train/prediction_top_share",
        "share of predictions that are the most frequently predicted class in a batch",
        "share",
        Range("pipeline.md Workflow 5: all predictions the same is a collapsed model", high=0.95),
    ),
    Metric(
        "train/logit_abs_max",
        "largest absolute logit of the answer in a batch",
        "",
        Range(
            "ours: a jump is a fault; pipeline.md Workflow 2 says within [-10, 10], but confident answers healthily "
            "leave that range",
            high=10,
            of="median",
        ),
    ),
)

REWARDS = _group(
    "Rewards",
    Metric(
        "train/dqn_reward_mean", "mean reward of the completed transitions, as paid; its parts are logged separately"
    ),
    Metric(
        "train/dqn_reward_std",
        "standard deviation of the rewards as paid",
        "",
        Range("pipeline.md Workflow 3: std above 0", above=0),
    ),
    Metric("train/dqn_reward_extrinsic", "the reward without curiosity"),
    Metric("train/dqn_reward_intrinsic", "the part from curiosity, after its weight"),
    Metric("train/dqn_reward_improvement", "the part from the rise of the utility u (dqn.reward_signal)"),
    Metric("train/dqn_reward_step", "the part from the step penalty (negative)"),
    Metric("train/dqn_reward_expansion_price", "the part from the price of opened capsules (negative)"),
    Metric("train/dqn_reward_expansion_bonus", "the part from the bonus for an EXPAND after which u rose enough"),
    Metric("train/dqn_reward_memory_bonus", "the part from the bonus for a rise of u with the memory bank on"),
    Metric("train/dqn_reward_terminal", "the part from HALT's reward, averaged over all transitions"),
    Metric("train/terminal_reward", "reward of HALT, averaged over the rows that halted"),
    Metric("train/dqn_accuracy_improvement", "rise of a row's accuracy from one reasoning step to the next"),
    Metric(
        "train/dqn_reward_scale",
        "running standard deviation that extrinsic rewards are divided by (now)",
        "",
        Range(_POSITIVE, above=0),
    ),
    Metric(
        "train/dqn_intrinsic_scale",
        "running standard deviation that intrinsic rewards are divided by (now)",
        "",
        Range(_POSITIVE, above=0),
    ),
    Metric("train/curiosity_count_mean", "visits of the states just seen, by the table of counts", "visits"),
)

Q_LEARNING = _group(
    "Q-learning and replay",
    Metric("train/dqn_q_mean", "mean Q-value of the states just seen", "scaled rewards"),
    Metric("train/dqn_target_mean", "mean TD target of the replayed transitions", "scaled rewards"),
    Metric(
        "train/dqn_ended_early",
        "replayed CONTINUE and EXPAND transitions that were stored as the end of their episode",
        "share",
        Range("ours: only HALT ends an episode", high=0.05),
    ),
    Metric(
        "train/dqn_td_error_mean",
        "mean absolute TD error of the replayed transitions",
        "scaled rewards",
        Range("pipeline.md Workflow 3: 0 to 2; rewards are scaled, so it holds for any task", high=2),
    ),
    Metric(
        "train/dqn_td_error_<action>",
        "mean TD error (value minus target) of the replayed <action> transitions; near 0 on average",
        "scaled rewards",
        members=("train/dqn_td_error_continue", "train/dqn_td_error_halt", "train/dqn_td_error_expand"),
    ),
    Metric("train/q_continue_mean", "mean Q-value of CONTINUE", "scaled rewards"),
    Metric("train/q_halt_mean", "mean Q-value of HALT", "scaled rewards"),
    Metric("train/q_expand_mean", "mean Q-value of EXPAND; exactly 0 means that it is not learned", "scaled rewards"),
    Metric(
        "train/q_abs_max",
        "largest absolute Q-value in a batch",
        "scaled rewards",
        Range("ours: a jump is a fault; pipeline.md Workflow 2 says within [-5, 5]", high=10, of="median"),
    ),
    Metric(
        "train/q_entropy",
        "mean entropy of softmax(Q / temperature) over the actions",
        "nats",
        Range(
            "pipeline.md Workflow 6: with ln 3 = 1.1, below 0.5 it has collapsed to one action, above 1.0 exploration "
            "is good",
            low=0.45,
            of="log_actions",
        ),
    ),
    Metric("train/dqn_epsilon", "exploration rate (now)", "share"),
    Metric("train/dqn_temperature", "temperature of the entropy term (now)"),
    Metric(
        "train/dqn_price_level", "middle price level (now; rises over dqn.price_warmup_steps)", "reward per price unit"
    ),
    Metric(
        "train/dqn_buffer_size",
        "complete transitions in the buffer (now)",
        "transitions",
        Range("pipeline.md Issue 3: learning begins at that size", low=1, of="dqn.buffer_min_size"),
    ),
    Metric(
        "train/dqn_stored",
        "transitions completed per step",
        "transitions",
        Range("pipeline.md Workflow 3: transitions are stored at every step", above=0),
    ),
    Metric(
        "train/dqn_sampleable_pct",
        "complete transitions that are young enough (dqn.max_age) and surprising enough (dqn.td_error_threshold) to be "
        "drawn",
        "percent",
        Range(_POSITIVE, above=0),
    ),
    Metric("train/dqn_replay_age_mean", "age of the replayed transitions", "steps"),
    Metric("train/dqn_beta", "exponent of the importance weights (now)"),
    Metric(
        "train/dqn_target_age",
        "steps since the target network was last copied (now; 0 with dqn.target_tau)",
        "steps",
        Range("pipeline.md Workflow 3: check that the target network is updated", high=1, of="dqn.target_update_freq"),
    ),
    Metric(
        "train/dqn_target_closed",
        "share of its distance to the Q-head that the target network closed in its last moves: 1 for a copy, "
        "dqn.target_tau with Polyak averaging",
        "share",
        Range("ours: a target that follows anything else closes another share, or none", above=0),
    ),
)

ACTIONS = _group(
    "Actions, steps and capsules",
    Metric(
        "train/action_<n>_<name>",
        "rows that chose <name>, action number <n>",
        "share",
        Range(
            "pipeline.md Issue 4: a third each at first, then about 60 % continue, 30 % halt, 10 % expand; only the "
            "extremes are faults",
            low=0.001,
            high=0.99,
        ),
        members=("train/action_0_continue", "train/action_1_halt", "train/action_2_expand"),
    ),
    Metric(
        "train/action_expand_pct",
        "rows that chose EXPAND",
        "percent",
        Range(
            "pipeline.md: 5 to 20 once learned, where detail is worth its price; only the extremes are faults",
            low=0.1,
            high=90,
        ),
    ),
    Metric(
        "train/num_expansions",
        "capsules that EXPAND opened, in rows that halted",
        "capsules",
        Range("pipeline.md: above 0 where EXPAND is on", above=0),
    ),
    Metric(
        "train/expansion_cost",
        "price units that EXPAND spent, in rows that halted",
        "price units",
        Range("pipeline.md Workflow 1: above 0 where EXPAND is on", above=0),
    ),
    Metric(
        "train/num_open_at_start",
        "capsules that were open from the first step, without being paid for, in rows that halted "
        "(dqn.random_open_fraction)",
        "capsules",
    ),
    Metric(
        "train/ponder_cost",
        "reasoning steps of rows that halted",
        "steps",
        Range("ours: a policy that never halts is at max_steps", high=0.98, of="arch.max_steps"),
    ),
    Metric(
        "train/hcycle_exit_pct",
        "rows that leave the H loop before its last cycle; while the predictor learns (and takes every cycle), rows "
        "that would leave",
        "percent",
    ),
    Metric(
        "train/cos_sim_mean",
        "cosine between the sketches and their prediction from z_H",
        "",
        Range("pipeline.md: above 0.5", low=0.5),
    ),
    Metric(
        "train/cmi_promised",
        "fall of the loss that the cmi head predicted for the capsules just opened",
        "nats",
        Range("ours: within a factor of three of the measured fall", low=1 / 3, high=3, of="train/cmi_measured"),
    ),
    Metric("train/cmi_measured", "measured fall of the loss after those openings", "nats"),
)

PARTS = _group(
    "Memory bank and concepts",
    Metric("train/memory_filled", "slots in use (now)", "share", Range(_POSITIVE, above=0)),
    Metric("train/memory_reads", "slots read per step", "slots", Range(_POSITIVE, above=0)),
    Metric("train/memory_writes", "entries written per step", "entries", Range(_POSITIVE, above=0)),
    Metric("train/memory_merged", "writes that replaced a nearly equal entry", "entries"),
    Metric("train/memory_evicted", "writes that evicted an old entry", "entries"),
    Metric("train/memory_quality", "mean terminal reward of the entries in use (now)"),
    Metric(
        "train/memory_gate",
        "mean gate on what is read; near 0 the bank has no effect",
        "share",
        Range(_POSITIVE, above=0),
    ),
    Metric(
        "train/concept_perplexity",
        "exp(entropy) of the concepts chosen: how many are effectively in use",
        "concepts",
        Range("ours: one or two concepts for everything is a collapsed codebook", low=2),
    ),
    Metric("train/concept_usage", "concepts chosen at least once recently", "share", Range(_POSITIVE, above=0)),
    Metric(
        "train/concept_dead",
        "concepts used too little to be kept; they are reset to states of the data, as far as there are rows",
        "concepts",
    ),
)

GRADIENTS = _group(
    "Gradients and weights",
    Metric(
        "train/grad_norm",
        "gradient norm of the model before clipping",
        "",
        Range("pipeline.md: < 10 (at its clip of 1.0)", high=10, of="training.grad_clip_norm"),
    ),
    Metric(
        "train/policy_grad_norm",
        "gradient norm of the value net and cmi head before clipping",
        "",
        Range("pipeline.md: < 10 (at its clip of 1.0)", high=10, of="dqn.grad_clip_norm"),
    ),
    Metric(
        "train/grad_clip_ratio",
        "steps in which the model's gradient was clipped",
        "share",
        Range("pipeline.md 5.5: frequently: raise grad_clip_norm", high=0.9),
    ),
    Metric(
        "train/policy_grad_clip_ratio",
        "steps in which the policy's gradient was clipped",
        "share",
        Range("pipeline.md 5.5: frequently: raise grad_clip_norm", high=0.9),
    ),
    Metric(
        "train/grad/mean_norm",
        "mean over parameters of the norm of their gradient",
        "",
        Range("pipeline.md 5.4: below 1e-6 the gradient vanishes", low=1e-6),
    ),
    Metric(
        "train/grad/max_norm",
        "largest norm of one parameter's gradient",
        "",
        Range("pipeline.md 5.4: > 100 explodes (at its clip of 1.0)", high=100, of="training.grad_clip_norm"),
    ),
    Metric("train/grad/min_norm", "smallest norm of one parameter's gradient; 0 where one has none"),
    Metric(
        "train/grad/layer_<group>",
        "gradient norm of the parameters of <group>",
        "",
        Range("pipeline.md Workflow 5: above 0, or the part is dead; 0 is right for a frozen part", above=0),
    ),
    Metric(
        "train/grad/num_zero",
        "parameters with a zero gradient, or none",
        "parameters",
        Range(
            "pipeline.md 5.4: not increasing; it does increase where training.predictor_steps freezes the model",
            high=1,
            of="first",
        ),
    ),
    Metric(
        "train/grad/num_nan",
        "parameters with NaN in their gradient",
        "parameters",
        Range("pipeline.md Issue 5: 0", low=0, high=0),
    ),
    Metric(
        "train/grad/num_inf",
        "parameters with Inf in their gradient",
        "parameters",
        Range("pipeline.md Issue 5: 0", low=0, high=0),
    ),
    Metric(
        "train/grad/mean",
        "mean element of the whole gradient",
        "",
        Range("pipeline.md 5.4: near 0", low=-0.1, high=0.1, of="train/grad/std"),
    ),
    Metric("train/grad/std", "standard deviation of the elements of the whole gradient", "", Range(_POSITIVE, above=0)),
    Metric(
        "train/param_norm",
        "norm of all weights (now)",
        "",
        Range("ours: a limit for weights that run away", high=5, of="first"),
    ),
    Metric(
        "train/update_ratio",
        "norm of a step's change of the model's weights, divided by the norm of the weights",
        "",
        Range(
            "ours: after warm-up; about 1e-3 is usual, far less learns nothing, far more diverges", low=1e-7, high=0.1
        ),
    ),
    Metric(
        "train/average_lag",
        "distance of the averaged weights (training.ema_decay) from the model's own, divided by the norm of the latter",
        "",
        Range("ours: an average lies near its weights, and nearer as the learning rate falls", high=0.5),
    ),
    Metric("train/policy_update_ratio", "the same for value net and cmi head", "", Range("ours: as above", high=0.1)),
    Metric(
        "train/unmoved_weights",
        "share of the weights, by whole tensors, that have a gradient but are not changed by a step",
        "",
        Range("ours: 0; weights that do not move are in no optimiser", low=0, high=0.01),
    ),
)

RESOURCES = _group(
    "Speed and memory use",
    Metric(
        "train/steps_per_sec",
        "optimiser steps per second since this process began to train",
        "1/s",
        Range(
            "ours: not below half of before; pipeline.md Issue 7's 1 step/s belongs to one GPU and model",
            low=0.5,
            of="median",
        ),
    ),
    Metric(
        "train/samples_per_sec",
        "rows that took a reasoning step, per second, over all processes",
        "1/s",
        Range(
            "ours: not below half of before; pipeline.md Issue 7's 500 to 1000 belong to an A100", low=0.5, of="median"
        ),
    ),
    Metric(
        "train/skipped_steps",
        "steps skipped so far because the loss or the gradient was not finite",
        "steps",
        Range("ours: one or two may be bad data", high=2),
    ),
    Metric(
        "train/loss_scale",
        "with `training.precision: float16`: factor on the loss, by which its gradient is divided again",
        "",
        Range("ours: at 1, anything that leaves float16's range is a fault", above=1.0),
    ),
    Metric(
        "train/loss_scale_overflow",
        "with `training.precision: float16`: share of steps skipped because the gradient left its range",
        "share",
        Range("ours: some at the start, then one in thousands", high=0.1),
    ),
    Metric(
        "train/rollbacks",
        "times that training has gone back to a checkpoint because several steps in a row were not finite",
        "",
        Range("ours: each halves the rates", high=0),
    ),
    Metric(
        "train/rate_factor", "factor on all learning rates after rollbacks", "", Range("ours: 1", low=1.0, high=1.0)
    ),
    Metric(
        "train/data_time_share",
        "share of the time spent waiting for data",
        "share",
        Range("pipeline.md Workflow 7: > 20 % of the step time", high=0.2),
    ),
    Metric(
        "train/logging_time_share",
        "share of the time between two lines that was spent on measuring and writing the earlier one",
        "share",
        Range("pipeline.md Workflow 7: 10 ms; as a share of the step it holds for steps of any length", high=0.05),
    ),
    Metric(
        "train/gpu_memory_gb",
        "memory allocated on the GPU, peak since the last line",
        "GB",
        Range("pipeline.md Workflow 4: stable after about 10 steps", high=1.2, of="median"),
    ),
    Metric("train/gpu_reserved_gb", "memory reserved on the GPU by the allocator (now)", "GB"),
    Metric(
        "train/rss_gb",
        "resident memory of the process (now)",
        "GB",
        Range("pipeline.md Workflow 4: growth is a leak", high=1.5, of="median"),
    ),
)

PROGRESS = _group(
    "Progress",
    Metric(
        "train/lr",
        "learning rate of the first group (now)",
        "",
        Range("pipeline.md Workflow 2: no spike above the peak", high=1.0001, of="training.base_lr"),
    ),
    Metric("train/step", "optimiser steps done"),
    Metric("train/epoch", "passes over the training split"),
)

EVALUATION = _group(
    "Evaluation",
    Metric(
        "eval/accuracy",
        "share of right answers of the learned policy",
        "share",
        Range("pipeline.md Issue 8: above guessing", low=1, of="chance"),
    ),
    Metric("eval/exact_accuracy", "share of rows with every answer right", "share"),
    Metric(
        "eval/loss",
        "cross-entropy of the final answers",
        "nats",
        Range("ours: above ln V answers are worse than none", high=1, of="log_classes"),
    ),
    Metric("eval/opened", "capsules opened per sample", "capsules"),
    Metric("eval/spent", "price units paid per sample", "price units"),
    Metric(
        "eval/steps",
        "reasoning steps per sample",
        "steps",
        Range("ours: a policy that never halts is at max_steps", high=0.98, of="arch.max_steps"),
    ),
    Metric("eval/answer_top_share", "answers that are the most frequent answer", "share"),
    Metric("eval/label_top_share", "labels that are the most frequent label", "share"),
    Metric(
        "eval/labels_left_out",
        "labels of classes that are answered less than a quarter as often as they are the label; only classes where "
        "that is significant (0.001) and that are at least half as frequent as the most frequent one",
        "share",
        Range("ours: a class that is hardly ever answered is a fault; early in training there may be some", high=0),
    ),
    Metric(
        "eval/answers_in_excess",
        "answers in excess of the labels, of classes that are answered more than twice as often as they are the label; "
        "only where that is significant (0.001)",
        "share",
        Range("ours: a class that is answered far too often is a fault; early in training there may be some", high=0),
    ),
)

ALL = LOSSES + ANSWERS + REWARDS + Q_LEARNING + ACTIONS + PARTS + GRADIENTS + RESOURCES + PROGRESS + EVALUATION

# pipeline.md, "What metrics should I watch?", and what this project adds.
ESSENTIAL = (
    "train/lm_loss",
    "train/accuracy",
    "train/halt_accuracy",
    "train/dqn_loss",
    "train/dqn_buffer_size",
    "train/dqn_reward_mean",
    "train/action_expand_pct",
    "train/q_expand_mean",
    "train/num_expansions",
    "train/cos_sim_mean",
    "train/grad_norm",
    "train/grad/num_nan",
    "train/samples_per_sec",
    "eval/accuracy",
    "eval/opened",
)
