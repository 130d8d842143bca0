"""Checks of a config before anything runs: what is switched off, and schedules that do not fit the run."""

from __future__ import annotations

import math

from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.checks.children import children_tell_nothing
from trm_core.diagnose.checks.loss_weights import ENTROPY_WEIGHT, LOSS_WEIGHTS
from trm_core.diagnose.checks.settings import can_expand, has_policy
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.statistics import median

_EXPLORED = 100_000  # random decisions: a default batch makes as many in some 200 steps of pure exploration


def expansion_off(evidence: Evidence) -> Finding:
    config, children = evidence.settings, evidence.file.file.num_children
    if config.arch.enable_capsule_expansion is not False or not children:
        return ok("EXPAND is on" if children else "there is nothing to open", children=children)
    if children_tell_nothing(evidence):
        return ok("the children say no more than their sketches, and EXPAND is off", children=children)
    wanted = config.dqn.enabled is True
    return Finding(
        Verdict.FAIL if wanted else Verdict.WARN,
        f"{evidence.file.file.path} has {children} children per capsule, and arch.enable_capsule_expansion=false",
        sure="certain" if wanted else "possible",
        numbers={"children": float(children)},
        why="The detail is there, but no policy may buy it: expansion_cost and action_2_expand stay 0.",
        fix={"arch.enable_capsule_expansion": True, "arch.q_head_num_actions": 3, "dqn.enabled": True}
        # The continue logit is used only when halting without a policy.
        | ({"arch.enable_q_continue": False} if config.arch.enable_q_continue else {}),
    )


def two_actions(evidence: Evidence) -> Finding:
    config, children = evidence.settings, evidence.file.file.num_children
    actions = config.arch.q_head_num_actions
    if actions == 3 or not children or not has_policy(evidence) or children_tell_nothing(evidence):
        return ok(f"{actions} actions", actions=actions)
    return Finding(
        Verdict.FAIL,
        "arch.q_head_num_actions=2: CONTINUE and HALT, no EXPAND",
        numbers={"actions": float(actions)},
        why="A Q-head with two outputs cannot choose to open a capsule.",
        fix={"arch.q_head_num_actions": 3, "arch.enable_capsule_expansion": True},
    )


def buffer_min_size(evidence: Evidence) -> Finding:
    config = evidence.settings
    if not has_policy(evidence):
        return unknown("no policy is learned")
    rows, least, total = evidence.rows_per_process, config.dqn.buffer_min_size, config.training.total_steps
    # Every row adds about one transition per step to the replay buffer of its process.
    begins = least / rows
    held = evidence.metrics["train/dqn_buffer_size"]
    numbers = {"begins_at_step": begins, "total_steps": float(total)}
    text = f"Q-learning begins at about step {begins:.0f} of {total}"
    if len(held):
        numbers["buffer_size"] = held.last
        text += f" ({held.last:.0f} of dqn.buffer_min_size={least} transitions at step {evidence.metrics.last_step})"
    oldest = config.dqn.max_age
    if oldest is not None and oldest * rows < least:
        begins = math.inf
        left = f"dqn.max_age={oldest} leaves {oldest * rows:.0f} transitions to draw from"
        text = f"{left}, and Q-learning waits for {least}"
    share = begins / total
    late = Verdict.FAIL if share > 0.25 else Verdict.WARN if share > 0.1 else Verdict.OK
    if late is Verdict.OK:
        return ok(text, **numbers)
    fitting = min(max(min(1000, int(total * rows / 50)), 1), least)  # no more than now, so it fits into the buffer
    return Finding(
        late,
        text,
        numbers=numbers,
        why="There is no dqn_loss until dqn.buffer_min_size transitions can be drawn. Each row of a batch completes "
        "about one per step, and each process has its own buffer.",
        fix={"dqn.buffer_min_size": fitting} | ({"dqn.max_age": None} if math.isinf(begins) else {}),
    )


def epsilon_zero(evidence: Evidence) -> Finding:
    dqn, total = evidence.settings.dqn, evidence.settings.training.total_steps
    if not has_policy(evidence):
        return unknown("no policy is learned")
    entropy = dqn.enable_entropy_regularization and dqn.entropy_regularization_weight > 0
    share = dqn.epsilon_decay / total
    text = f"epsilon falls from {dqn.epsilon_start:g} to {dqn.epsilon_end:g} over {dqn.epsilon_decay} of {total} steps"
    mean = dqn.epsilon_end + (dqn.epsilon_start - dqn.epsilon_end) * min(share, 1) / 2
    explored = mean * total * evidence.settings.training.global_batch_size
    numbers = {"mean_epsilon": mean, "explored": explored}
    # A long run explores enough even in a small part of its steps.
    if entropy or mean >= 0.05 or explored >= _EXPLORED:
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL if mean < 0.02 else Verdict.WARN,
        text,
        numbers=numbers,
        why="Actions that are hardly ever tried are never learned: the value of EXPAND stays what it was at the start.",
        fix={"dqn.epsilon_start": 1.0, "dqn.epsilon_end": 0.1, "dqn.epsilon_decay": max(total // 2, 1)},
    )


def target_frozen(evidence: Evidence) -> Finding:
    dqn, total = evidence.settings.dqn, evidence.settings.training.total_steps
    if not has_policy(evidence):
        return unknown("no policy is learned")
    age = evidence.metrics["train/dqn_target_age"]
    oldest = float(age.finite().values.max()) if len(age.finite()) else 0.0
    fix = {"dqn.target_tau": min(max(0.01, 10 / total), 1.0)}
    why = "TD targets come from a copy of the Q-head. If hardly ever renewed, it teaches an untrained net's values."
    closed, expected = median(evidence.metrics["train/dqn_target_closed"].tail(0.5)), dqn.target_tau or 1.0
    # The median over the logged values: a network that follows as configured differs only by rounding.
    if abs(closed - expected) > 0.25 * expected:
        return Finding(
            Verdict.FAIL,
            f"a move of the target network closes {100 * closed:.3g} % of its distance to the Q-head, "
            f"where the config says {100 * expected:.3g} %",
            numbers={"closed": closed, "expected": expected},
            why="TD targets come from a network that should follow the Q-head, but it follows something else.",
            advice="check what is passed to trm_core.dqn.learner.TargetNetwork.follow",
        )
    if dqn.target_tau is not None:
        way = 1 - (1 - dqn.target_tau) ** total
        if dqn.target_tau * total >= 3:
            return ok(f"the target network follows by dqn.target_tau={dqn.target_tau:g}", tau=dqn.target_tau)
        return Finding(
            Verdict.FAIL if dqn.target_tau * total < 1 else Verdict.WARN,
            f"dqn.target_tau={dqn.target_tau:g} moves the target network by {100 * way:.2g} % of the way "
            f"in {total} steps",
            numbers={"tau": dqn.target_tau, "way": way},
            why=why,
            fix=fix,
        )
    copies = total / dqn.target_update_freq
    numbers = {"copies": copies, "oldest": oldest}
    text = f"the target network is copied every {dqn.target_update_freq} steps, {copies:.1f} times in this run"
    if oldest > 1.05 * dqn.target_update_freq + 1:
        text += f"; it has been {oldest:.0f} steps old"
    elif copies >= 3:
        return ok(text, **numbers)
    verdict = Verdict.FAIL if copies < 1 or oldest > 1.05 * dqn.target_update_freq + 1 else Verdict.WARN
    return Finding(verdict, text, numbers=numbers, why=why, fix=fix)


def rewards_zero(evidence: Evidence) -> Finding:
    dqn = evidence.settings.dqn
    if not has_policy(evidence):
        return unknown("no policy is learned")
    terminal = abs(dqn.reward_terminal_correct - dqn.reward_terminal_incorrect)
    spread = evidence.metrics["train/dqn_reward_std"].finite()
    paid = float(spread.tail(0.5).values.max()) if len(spread) else None
    numbers = {"terminal_gap": terminal} | ({} if paid is None else {"reward_std": paid})
    text = f"a right answer pays {terminal:g} more than a wrong one"
    if paid is not None:
        text += f"; rewards vary by {paid:.3g}"
    divisor = evidence.metrics["train/dqn_reward_scale"].last
    # A running standard deviation cannot exceed by far what was logged: rewards within a step vary less than rewards
    # overall, hence the factor. The scale is exactly 1 until there are enough rewards.
    most = 0.0 if paid is None else max(float(spread.values.max()), 1e-3)
    if paid is not None and divisor > 3 * most and divisor != 1.0 and terminal > 0:
        return Finding(
            Verdict.FAIL,
            f"{text} and are divided by {divisor:.3g}",
            numbers=numbers | {"scale": divisor},
            why="The scaled rewards are too small to learn from. The scale should be the standard deviation of the "
            "rewards that were paid.",
            advice="check trm_core.dqn.rewards.RewardScale, and train/dqn_reward_scale over the run",
        )
    if terminal > 0.05 and (paid is None or paid > 1e-6):
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL if terminal == 0 or (paid is not None and paid <= 1e-6) else Verdict.WARN,
        text,
        numbers=numbers,
        why="Without a reward for being right, Q-values contain only costs and bonuses, and the policy stops thinking.",
        fix={"dqn.reward_terminal_correct": 1.0, "dqn.reward_terminal_incorrect": -0.5},
    )


def expansion_price(evidence: Evidence) -> Finding:
    dqn = evidence.settings.dqn
    if not has_policy(evidence) or not can_expand(evidence):
        return unknown("EXPAND is off")
    file = evidence.file.file
    price = dqn.expansion_cost_per_child * file.num_children * float(file.prices.mean())
    gap = dqn.reward_terminal_correct - dqn.reward_terminal_incorrect + 1.0  # plus the rise of u, at most 1
    numbers = {"price": price, "gain": gap}
    text = f"opening one of {file.num_capsules} capsules costs {price:.3g}; a right answer gains at most {gap:.3g}"
    opened = evidence.metrics["eval/opened"].last
    if not math.isnan(opened):
        numbers["opened"] = opened
        text += f"; evaluation opens {opened:.2f}"
    probe = evidence.file.probe
    worth = None if probe is None or probe.detail is None else probe.detail - probe.sketches
    # No policy pays more for one capsule than all of them together are worth.
    dear = price > 0.25 * gap or (worth is not None and worth > 0 and opened < 0.1 and price > 0.5 * worth * gap)
    fix = {"dqn.expansion_cost_per_child": 0.01 * gap / (file.num_children * float(file.prices.mean()))}
    why = "The price is always paid, the gain comes only if the answer changes. Above the gain nothing is opened."
    if dear:
        return Finding(Verdict.FAIL, text, numbers=numbers, why=why, fix=fix)
    if price > 0.1 * gap:
        return Finding(Verdict.WARN, text, "possible", numbers, why, fix)
    return ok(text, **numbers)


def bonus_pays(evidence: Evidence) -> Finding:
    """Compare the bonus that EXPAND earns for helping at all with what a right answer gains over a wrong one."""
    dqn = evidence.settings.dqn
    if not has_policy(evidence) or not can_expand(evidence):
        return unknown("EXPAND is off")
    gap = dqn.reward_terminal_correct - dqn.reward_terminal_incorrect
    text = f"dqn.reward_expansion_bonus={dqn.reward_expansion_bonus:g}; a right answer gains {gap:g} over a wrong one"
    numbers = {"bonus": dqn.reward_expansion_bonus, "gain": gap}
    if dqn.reward_expansion_bonus <= 0.5 * gap:
        return ok(text, **numbers)
    return Finding(
        Verdict.WARN,
        text,
        "likely",
        numbers,
        "The bonus is paid again for each EXPAND that helps a little, so a row that keeps opening earns more than one "
        "that answers. The value of an answer is already in the other rewards.",
        {"dqn.reward_expansion_bonus": 0.0},
    )


def budget_too_small(evidence: Evidence) -> Finding:
    """Compare what a row may spend with what a capsule costs; the budget and the file's prices share their unit."""
    budget = evidence.settings.dqn.budget
    if budget is None or not has_policy(evidence) or not can_expand(evidence):
        return ok("dqn.budget=null: no limit") if budget is None else unknown("EXPAND is off")
    prices = evidence.file.file.prices.astype(float)
    affordable = float((prices <= budget).mean())
    numbers = {"budget": budget, "cheapest": float(prices.min()), "everything": float(prices.sum())}
    least, most = f"{prices.min():g}", f"{prices.max():g}"
    each = least if least == most else f"{least} to {most}"
    text = f"dqn.budget={budget:g} price units; a capsule costs {each}, all {len(prices)} of them {prices.sum():g}"
    if affordable == 1.0:
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL if affordable < 0.5 else Verdict.WARN,
        text,
        numbers=numbers,
        why="A capsule that costs more than the budget can never be opened. The budget is an amount in price units, "
        "not a share of the price of everything.",
        fix={"dqn.budget": None},
    )


def wandb_ready(evidence: Evidence) -> Finding:
    logging = evidence.settings.logging
    if not logging.wandb:
        return ok("Weights & Biases is off; metrics.jsonl is always written")
    since = evidence.run.log_of_last_start if evidence.run else ()
    said = [line for line in since if "Weights & Biases" in line and "warn" in line]
    if said:
        return Finding(
            Verdict.WARN,
            said[-1][:500],
            "certain",
            why="Training is not affected, and metrics.jsonl has every line.",
            advice="log in (wandb login), or check WANDB_MODE; set logging.wandb=false if it is not wanted",
        )
    return ok(f"Weights & Biases logs to project {logging.wandb_project}")


CHECKS = (
    Check(
        "two-actions",
        ("config", "dqn", "expansion", "capsule-state"),
        "action_2_expand is missing",
        "pipeline.md Issues 2 and 4, Workflow 3",
        ("config", "data"),
        two_actions,
    ),
    Check(
        "expansion-off",
        ("config", "capsule-state", "expansion"),
        "expansion_cost is always 0",
        "pipeline.md Issue 1, Workflow 1",
        ("config", "data"),
        expansion_off,
    ),
    LOSS_WEIGHTS,
    Check(
        "rewards-zero",
        ("dqn", "config"),
        "dqn_reward_mean never changes",
        "pipeline.md Workflow 3 step 5",
        ("config",),
        rewards_zero,
        watched=True,
    ),
    Check(
        "buffer-min-size",
        ("dqn", "config"),
        "dqn_loss is always 0, or missing",
        "pipeline.md Issue 3",
        ("config",),
        buffer_min_size,
        watched=True,
    ),
    Check(
        "epsilon-zero",
        ("dqn", "config", "expansion"),
        "one action is never tried",
        "pipeline.md Workflow 6 steps 1 and 6",
        ("config",),
        epsilon_zero,
    ),
    Check(
        "target-frozen",
        ("dqn", "config"),
        "dqn_loss falls, but the policy does not improve",
        "pipeline.md Workflow 3 step 4",
        ("config",),
        target_frozen,
        watched=True,
    ),
    Check(
        "expansion-price",
        ("expansion", "config", "dqn"),
        "action_2_expand falls to 0",
        "pipeline.md Issue 4, Workflow 6 step 4",
        ("config", "data"),
        expansion_price,
    ),
    Check(
        "bonus-pays",
        ("expansion", "config", "dqn"),
        "everything is opened, and no row halts",
        "ours",
        ("config", "data"),
        bonus_pays,
    ),
    Check(
        "budget-too-small",
        ("expansion", "config", "dqn"),
        "action_2_expand is 0, gradients of the children's part are 0",
        "ours",
        ("config", "data"),
        budget_too_small,
    ),
    ENTROPY_WEIGHT,
    Check(
        "wandb-ready",
        ("config", "environment"),
        "Weights & Biases receives nothing",
        "pipeline.md checklist",
        ("config",),
        wandb_ready,
    ),
)
