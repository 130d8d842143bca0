"""Checks of warm-up and learning rates."""

from __future__ import annotations

import math

import numpy as np

from trm_core.config.schema import TrainingConfig
from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.checks.settings import begun_at, slower, went_on
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.statistics import block_means, median, middle, rising
from trm_core.optim.schedule import lr_factor

_LINES_SINCE = 20  # logged since a run was resumed, before its rate is compared with the schedule


def warmup_missing(evidence: Evidence) -> Finding:
    training = evidence.settings.training
    share = training.lr_warmup_steps / training.total_steps
    numbers: dict[str, float] = {"warmup_steps": training.lr_warmup_steps, "share": share}
    text = f"training.lr_warmup_steps={training.lr_warmup_steps} of {training.total_steps}"
    if training.lr_warmup_steps >= min(10, 0.02 * training.total_steps):
        return ok(text, **numbers)
    begun = max(0.1 * training.total_steps, 50)
    loss = evidence.metrics["train/lm_loss"].between(0, begun).finite().values
    moved = evidence.metrics["train/update_ratio"].between(0, begun).finite().values
    total = training.total_steps
    fix = {"training.lr_warmup_steps": max(total // 20, min(10, total // 2), 1)}
    why = "At first an adaptive optimiser does not know the gradients' size, and full steps can go anywhere."
    classes = evidence.file.file.num_classes if evidence.data is not None else None
    guessing = math.log(classes) if classes else float(loss[0]) if len(loss) else math.inf
    if len(loss) and loss.max() > 1.5 * guessing:
        numbers["worst"] = float(loss.max())
        text += f"; lm_loss went up to {loss.max():.3g} in the first steps, guessing costs {guessing:.3g}"
    elif len(moved) and moved.max() > 0.03:
        numbers["update_ratio"] = float(moved.max())
        text += f"; a step changed the weights by {moved.max():.2g} of their norm"
    if len(numbers) > 2:
        # If the first steps did this much harm, the learning rate is too high as well.
        return Finding(Verdict.FAIL, text, "likely", numbers, why, {**fix, **slower(evidence, 10)})
    return Finding(Verdict.WARN, text, "possible", numbers, why, fix)


def lr_too_high(evidence: Evidence) -> Finding:
    training, metrics = evidence.settings.training, evidence.metrics
    last = evidence.learning_steps
    warm = min(training.lr_warmup_steps, last // 2)
    moved = metrics["train/update_ratio"].between(warm, warm + max((last - warm) // 2, 20)).finite()
    ratio = median(moved)
    loss = block_means(metrics["train/lm_loss"].between(warm, last))
    classes = evidence.file.file.num_classes if evidence.data is not None else None
    numbers = {"base_lr": training.base_lr, "update_ratio": ratio}
    text = f"a step changes the weights by {ratio:.2g} of their norm at training.base_lr={training.base_lr:g}"
    if math.isnan(ratio) or len(loss) < 4:
        return unknown("too few steps after warm-up")
    worse = float(loss[-3:].mean() / max(loss.min(), 1e-9))
    guessing = math.log(classes) if classes else math.inf
    above_guessing = loss[-3:].mean() > 1.05 * guessing
    numbers |= {"loss_over_its_best": worse}
    harmed = above_guessing or worse > 2
    if harmed:
        text += f"; lm_loss ends at {loss[-3:].mean():.3g}, {worse:.2g} times its best"
    peak, highest = (max(metrics[f"train/{name}"].finite().values, default=0.0) for name in ("update_ratio", "lm_loss"))
    thrown = peak > 0.05 and highest > 1.5 * guessing
    if thrown:
        numbers |= {"largest_update": float(peak), "largest_loss": float(highest)}
        text += f"; it was {peak:.2g} once, and lm_loss {highest:.3g}, where guessing costs {guessing:.3g}"
    stuck = never_recovered(evidence, float(peak), float(loss[-3:].mean()))
    if stuck:
        numbers |= {"largest_update": float(peak)}
        text += f"; it was {peak:.2g} once, and lm_loss {loss[-3:].mean():.3g} at the end is that of guessing"
    if ratio > 0.1 or (ratio > 0.02 and harmed) or thrown or stuck:
        verdict = Verdict.FAIL
    elif ratio > 0.03:
        verdict = Verdict.WARN
    else:
        return ok(text, **numbers)
    return Finding(
        verdict,
        text,
        sure="certain" if harmed and ratio > 0.1 else "likely",
        numbers=numbers,
        why="About a thousandth is usual. Steps this large jump out of every minimum that they find.",
        # Beside weights that have diverged later steps look small, so the largest step counts.
        fix=slower(evidence, 10.0 ** math.ceil(math.log10(max(ratio, peak / 3) / 2e-3))),
    )


def never_recovered(evidence: Evidence, peak: float, loss: float) -> bool:
    """Whether large steps have thrown the weights to where nothing is learned although the loss does not explode: under
    stablemax it grows only with the logarithm of the logits.
    """
    if evidence.settings.arch.probabilities != "stablemax" or evidence.data is None:
        return False
    return peak > 0.1 and loss > 0.95 * (evidence.guessing or math.inf)


def lr_too_low(evidence: Evidence) -> Finding:
    training = evidence.settings.training
    followed = rate_over_schedule(evidence)
    if followed < 0.3:
        return Finding(
            Verdict.FAIL,
            f"the learning rate that was logged is {followed:.2g} of what its schedule says (median of the steps)",
            numbers={"rate_over_schedule": followed},
            why="The schedule is evaluated at another step than the current one, or something else sets the rate.",
            advice="check what calls trm_core.optim.schedule.lr_factor, and in which unit it counts",
        )
    loss = evidence.metrics["train/lm_loss"].between(0, evidence.learning_steps)
    means = block_means(loss)
    learned = len(means) > 3 and means[-1] < 0.8 * means[0]
    warmed_up = training.lr_warmup_steps / evidence.learning_steps
    if warmed_up >= 0.5 and evidence.learning_steps >= 100:
        return Finding(
            Verdict.FAIL if warmed_up >= 0.9 and not learned else Verdict.WARN,
            f"training.lr_warmup_steps={training.lr_warmup_steps} of {evidence.learning_steps} steps: most of the run "
            "the rate is still rising",
            "likely",
            {"warm_up": warmed_up},
            "A warm-up should take the first few per cent of a run. This one fits a longer run.",
            {"training.lr_warmup_steps": max(evidence.learning_steps // 20, 10), **usual_rates(evidence)},
        )
    way = way_to_go(evidence)
    if way < 0.15 and training.init_from is None and evidence.learning_steps >= 100 and not learned:
        return Finding(
            Verdict.FAIL if way < 0.05 else Verdict.WARN,
            f"all steps together can move a weight by {100 * way:.2g} % of its size at the beginning "
            f"(training.base_lr={training.base_lr:g}, {evidence.learning_steps} steps)",
            "likely",
            {"way": way},
            "A model that starts from random weights has to move far from them. Such a rate suits fine-tuning, or many "
            "more steps.",
            usual_rates(evidence),
        )
    series = evidence.metrics["train/update_ratio"].between(training.lr_warmup_steps, evidence.learning_steps)
    ratio = median(series)
    if math.isnan(ratio):
        return unknown("too few steps after warm-up")
    text = f"a step changes the weights by {ratio:.2g} of their norm"
    if ratio > 1e-5 or rising(loss) > 0.99:
        return ok(text, update_ratio=ratio)
    fix = {key: 10 * value for key, value in slower(evidence, 1).items()}
    return Finding(
        Verdict.WARN,
        f"{text}, and lm_loss does not fall",
        "likely",
        {"update_ratio": ratio},
        "About a thousandth is usual. Steps this small need a hundred times as many.",
        fix,
    )


def usual_rates(evidence: Evidence) -> dict[str, float]:
    """Overrides that raise learning rates below their default to it."""
    training, usual = evidence.settings.training, TrainingConfig()
    rates = {"training.base_lr": (training.base_lr, usual.base_lr)}
    if training.optimizer == "muon":
        rates["training.muon_lr"] = (training.muon_lr, usual.muon_lr)
    return {key: default for key, (rate, default) in rates.items() if rate < default}


def way_to_go(evidence: Evidence) -> float:
    """How far the planned steps can move a weight, relative to its initial size: the sum of the learning rates
    (optimisers like Adam move a weight by at most about the rate) divided by 1 / sqrt(width).
    """
    training, steps = evidence.settings.training, evidence.learning_steps
    rate = max(training.base_lr, training.muon_lr if training.optimizer == "muon" else 0.0)
    marks = np.linspace(0, max(steps - 1, 0), min(steps, 100)).astype(int).tolist()
    factors = [lr_factor(step, training.lr_warmup_steps, steps, training.lr_min_ratio) for step in marks]
    return rate * steps * float(np.mean(factors)) * math.sqrt(evidence.settings.arch.hidden_size)


def rate_over_schedule(evidence: Evidence) -> float:
    """Median ratio of the logged learning rate to that of the config's schedule; NaN without enough lines."""
    training, learning = evidence.settings.training, evidence.learning_steps
    rate = evidence.metrics["train/lr"].between(begun_at(evidence), learning).finite()
    if len(rate) < (_LINES_SINCE if went_on(evidence) else 1) or not training.base_lr:
        return math.nan
    rate = rate.tail(0.5)
    expected = [
        training.base_lr * lr_factor(int(step) - 1, training.lr_warmup_steps, learning, training.lr_min_ratio)
        for step in rate.steps
    ]
    lowered = evidence.metrics["train/rate_factor"].finite()
    factor = np.interp(rate.steps, lowered.steps, lowered.values) if len(lowered) else 1.0
    return middle(rate.values / (np.array(expected) * factor + 1e-30))


WARMUP = Check(
    "warmup-missing",
    ("gradients", "config", "accuracy"),
    "loss jumps in the first steps",
    "pipeline.md Workflow 2",
    ("config",),
    warmup_missing,
    watched=True,
)
TOO_HIGH = Check(
    "lr-too-high",
    ("gradients", "accuracy", "config"),
    "loss jumps, or stays where it began",
    "pipeline.md Issue 5, Workflow 5 step 4",
    ("config", "metrics"),
    lr_too_high,
    watched=True,
)
TOO_LOW = Check(
    "lr-too-low",
    ("gradients", "accuracy", "config"),
    "loss does not fall",
    "pipeline.md Workflow 5 step 4",
    ("config", "metrics"),
    lr_too_low,
    watched=True,
)
