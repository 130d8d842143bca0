"""Checks of the learned policy: Q-values, actions, and what is opened."""

from __future__ import annotations

import math

import numpy as np

from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.checks.settings import can_expand, has_policy
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.statistics import block_means, mean_interval, median, middle
from trm_core.dqn.schedules import epsilon_at

_FIRST_STEPS = 20  # of Q-learning
_ACTIONS = ("train/action_0_continue", "train/action_1_halt", "train/action_2_expand")


def not_learning(evidence: Evidence) -> Finding:
    metrics, dqn = evidence.metrics, evidence.settings.dqn
    if not has_policy(evidence):
        return unknown("no policy is learned")
    held = metrics["train/dqn_buffer_size"]
    if not len(held):
        return unknown("nothing was logged yet")
    if held.last < dqn.buffer_min_size:
        stored = median(metrics["train/dqn_stored"])
        if stored > 0:
            return unknown(
                f"{held.last:.0f} of {dqn.buffer_min_size} transitions so far, {stored:.0f} more at each step"
            )
        return Finding(
            Verdict.FAIL,
            "no transition is stored",
            numbers={"stored": 0.0},
            why="Q-learning replays what was stored, and nothing was.",
        )
    loss = metrics["train/dqn_loss"].finite()
    late = loss.tail(0.5).values
    text = f"dqn_loss {middle(late) if len(late) else float('nan'):.3g} with {held.last:.0f} transitions"
    if len(late) and middle(late) > 0:
        return ok(text, dqn_loss=middle(late))
    return Finding(
        Verdict.FAIL,
        text,
        numbers={"buffer_size": held.last},
        why="The buffer is full enough, but the loss is 0: rewards, weight or targets are all 0.",
        fix={"loss_weights.dqn_loss": 0.5},
    )


def values_diverge(evidence: Evidence) -> Finding:
    size, error = evidence.metrics["train/q_abs_max"], evidence.metrics["train/dqn_td_error_mean"]
    means = block_means(size)
    if not has_policy(evidence) or len(means) < 4:
        return unknown("no Q-values were logged")
    if not len(error.finite()):
        return unknown("Q-learning has not begun")
    late, late_error = middle(means[-3:]), mean_interval(error.tail(0.3))[0]
    numbers = {"q_abs_max": late, "td_error": late_error}
    text = f"largest Q-value {late:.3g}, TD error {late_error:.3g} (in scaled rewards)"
    # Rewards are scaled to a standard deviation of one, and the return of an episode is a few of them.
    if late_error <= 2 and late <= 25:
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL if late > 50 or late_error > 10 else Verdict.WARN,
        text,
        "likely",
        numbers,
        "Q-values chase their own targets and diverge. A slower target network and a lower learning rate stabilise "
        "them.",
        _calmer(evidence),
    )


def _calmer(evidence: Evidence) -> dict[str, float]:
    """A lower learning rate for the Q-head, and a target network as slow as the length of this run allows."""
    dqn, training = evidence.settings.dqn, evidence.settings.training
    rate, follows = dqn.lr or training.base_lr, dqn.target_tau or 1 / dqn.target_update_freq
    tau = max(min(0.005, follows / 2), 4 / training.total_steps)
    return ({"dqn.lr": rate / 3} if rate else {}) | ({"dqn.target_tau": tau} if tau < follows else {})


def _run_away(evidence: Evidence) -> bool:
    """Whether values are far too large and still growing, rather than large from the start."""
    means = block_means(evidence.metrics["train/q_abs_max"])
    if values_diverge(evidence).verdict is not Verdict.FAIL:
        return False
    return bool(middle(means[-3:]) > 4 * means[len(means) // 4])


def collapse(evidence: Evidence) -> Finding:
    """Does one action get (nearly) all the decisions that exploration leaves to the policy?"""
    config, metrics = evidence.settings, evidence.metrics
    if not has_policy(evidence):
        return unknown("no policy is learned")
    names = _ACTIONS if can_expand(evidence) else _ACTIONS[:2]
    tails = [metrics[name].tail(0.2, 10) for name in names]
    if min(len(tail) for tail in tails) < 5:
        return unknown("too few steps were logged")
    learned = metrics["train/dqn_td_error_mean"].finite()
    if not len(learned) or metrics.last_step - learned.steps[0] < _FIRST_STEPS:
        return unknown("Q-learning has not begun, or only just: the policy is still the random initial one")
    if _run_away(evidence):
        return unknown("diverging Q-values prefer arbitrary actions; see q-values-diverge")
    shares = [float(np.mean(tail.finite().values)) for tail in tails]
    top = int(np.argmax(shares))
    epsilon = epsilon_at(config.dqn, metrics.last_step)
    name = names[top].rpartition("_")[2].upper()
    numbers = {"share": shares[top], "epsilon": epsilon}
    text = (
        f"{name} is {100 * shares[top]:.1f} % of the actions (exploration alone leaves {100 * epsilon:.0f} % to chance)"
    )
    steps, opened = metrics["eval/steps"].last, metrics["eval/opened"].last
    if not math.isnan(steps):
        numbers |= {"eval_steps": steps, "eval_opened": opened}
        text += f"; evaluation takes {steps:.2f} steps and opens {opened:.2f}"
    never_halts = not math.isnan(steps) and steps >= 0.995 * config.arch.max_steps and config.arch.max_steps > 1
    others = 1 - shares[top]
    # Not chosen freely: HALT at the last step, and what exploration draws.
    forced = 1 / config.arch.max_steps if top != 1 else 0.0
    # Exploration draws among all actions, including the one that the policy prefers. With much exploration, the action
    # must come three quarters of the way from its share under pure chance to that under a policy that takes no other.
    chosen = epsilon < 0.2 or shares[top] > 1 / len(names) + 0.75 * (1 - epsilon) * (1 - 1 / len(names))
    one_action = chosen and others <= 1.15 * epsilon * (len(names) - 1) / len(names) + forced + 0.01
    fix = {
        "dqn.enable_entropy_regularization": True,
        "dqn.entropy_regularization_weight": 0.05,
        "dqn.epsilon_end": 0.1,
    }
    why = (
        "The value of one action outgrew the others before these were tried enough. Exploration and the entropy term "
        "keep all of them tried."
    )
    entropy = median(metrics["train/q_entropy"].tail(0.2, 10))
    lowest = 0.45 * math.log(len(names))
    sure_of_one = entropy < lowest
    if not math.isnan(entropy):
        numbers["q_entropy"] = entropy
        text += f"; entropy of the Q-values {entropy:.2f} (below {lowest:.2f}: one action outweighs the rest)"
    # Opening capsules to the end, or halting at once, may be right; then the values of the other actions are close.
    undecided = entropy > 0.9 * math.log(len(names))
    if (sure_of_one and shares[top] > 0.5) or (one_action and not undecided and top == 0 and never_halts):
        return Finding(Verdict.FAIL, text, "likely", numbers, why, fix)
    # Opening capsules to the end may be right, but thinking on without opening any hardly is.
    if never_halts and top == 0 and chosen:
        return Finding(Verdict.WARN, f"{text}: it never halts by itself", "likely", numbers, why, fix)
    return ok(text, **numbers)


def terminal_sign(evidence: Evidence) -> Finding:
    """Does HALT pay what the config says, given the share of right answers?"""
    metrics, dqn = evidence.metrics, evidence.settings.dqn
    paid = mean_interval(metrics["train/terminal_reward"].tail(0.5))[0]
    right = mean_interval(metrics["train/final_accuracy"].tail(0.5))[0]
    gap = dqn.reward_terminal_correct - dqn.reward_terminal_incorrect
    if not has_policy(evidence) or math.isnan(paid) or math.isnan(right) or gap == 0:
        return unknown("no terminal rewards were logged")
    expected = dqn.reward_terminal_incorrect + gap * right
    numbers = {"paid": paid, "expected": expected}
    text = f"HALT paid {paid:.3g} on average; with {100 * right:.0f} % right answers the config says {expected:.3g}"
    if abs(paid - expected) <= 0.2 * gap:
        # A value whose sign is opposite to all that is paid was learned from rewards that were stored wrongly.
        value = mean_interval(metrics["train/q_halt_mean"].tail(0.2))[0]
        if abs(paid) <= 0.4 * gap or math.isnan(value) or value * paid >= 0 or abs(value) < 0.3:
            return ok(text, **numbers)
        return Finding(
            Verdict.FAIL,
            f"{text}; its value is {value:.3g} (in scaled rewards)",
            "likely",
            numbers | {"q_halt": value},
            "The reward of HALT and its Q-value have opposite signs. What is replayed is not what was paid.",
            advice="compare what is passed to trm_core.dqn.replay.ReplayBuffer.complete with train/terminal_reward",
        )
    return Finding(
        Verdict.FAIL,
        text,
        numbers=numbers,
        why="The reward of HALT does not follow the answers. Its sign or the labels are wrong in the code that pays "
        "it.",
        advice="compare trm_core.dqn.rewards.terminal_reward with what your code calls instead",
    )


def stale_replay(evidence: Evidence) -> Finding:
    """Are replayed transitions about as old as the window of steps that the buffer covers?"""
    metrics = evidence.metrics
    age, stored = median(metrics["train/dqn_replay_age_mean"].tail(0.1)), median(metrics["train/dqn_stored"].tail(0.1))
    held = metrics["train/dqn_buffer_size"].last
    if not has_policy(evidence) or math.isnan(age) or math.isnan(stored) or not stored > 0 or not held > 0:
        return unknown("nothing was replayed yet")
    window = held / stored
    numbers = {"age": age, "window": window}
    text = f"replayed transitions are {age:.0f} steps old, where the buffer holds those of the last {window:.0f} steps"
    if age <= 1.5 * window or metrics.last_step < 50:
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL if age > 2 * window else Verdict.WARN,
        text,
        "likely",
        numbers,
        "New transitions do not get into the buffer, or are not drawn. The policy learns from states of an old model.",
        {"dqn.recent_fraction": 0.25, "dqn.td_error_threshold": 0.0},
    )


def never_expands(evidence: Evidence) -> Finding:
    if not has_policy(evidence) or not can_expand(evidence):
        return unknown("EXPAND is off")
    share = evidence.metrics["train/action_expand_pct"].finite()
    if len(share) < 5:
        return unknown("too few steps were logged")
    late = float(np.mean(share.tail(0.2).values))
    text = f"{late:.2g} % of the actions are EXPAND"
    if late > 0.1:
        return ok(text, expand_pct=late)
    return Finding(
        Verdict.FAIL if late == 0 else Verdict.WARN,
        text,
        "likely",
        {"expand_pct": late},
        "EXPAND is chosen when its value exceeds the others'. Too high a price, no exploration, or detail that adds "
        "nothing keeps it lower.",
        {"dqn.epsilon_end": 0.1, "dqn.price_warmup_steps": max(evidence.settings.training.total_steps // 4, 1)},
    )


CHECKS = (
    Check(
        "dqn-not-learning",
        ("dqn",),
        "dqn_loss is 0, carry.q_action is None",
        "pipeline.md Issues 2 and 3, Workflow 3",
        ("config", "metrics"),
        not_learning,
        watched=True,
    ),
    Check(
        "terminal-reward-sign",
        ("dqn",),
        "the policy prefers wrong answers",
        "pipeline.md Workflow 3 step 5",
        ("config", "metrics"),
        terminal_sign,
        watched=True,
    ),
    Check(
        "replay-stale",
        ("dqn",),
        "the policy stops improving",
        "pipeline.md Workflow 3 step 2",
        ("config", "metrics"),
        stale_replay,
        watched=True,
    ),
    Check(
        "entropy-collapse",
        ("dqn", "expansion"),
        "all actions are the same",
        "pipeline.md Workflow 6 step 2",
        ("config", "metrics"),
        collapse,
        watched=True,
    ),
    Check(
        "expansion-never",
        ("expansion", "dqn"),
        "action_2_expand is 0",
        "pipeline.md Issue 4, Workflow 6",
        ("config", "metrics"),
        never_expands,
        watched=True,
    ),
    Check(
        "q-values-diverge",
        ("dqn",),
        "Q-values grow without end",
        "pipeline.md Workflow 2 step 4, Workflow 3 step 4",
        ("config", "metrics"),
        values_diverge,
        watched=True,
    ),
)
