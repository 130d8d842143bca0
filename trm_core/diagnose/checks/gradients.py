"""Checks of the optimisation: NaN, rates, norms, parts without a gradient."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm_core.config.schema import TrainingConfig
from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.checks.config import WARMUP
from trm_core.diagnose.checks.settings import has_policy, slower
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.statistics import block_means, median, rising
from trm_core.optim.schedule import lr_factor

_TINY = 1e-3  # a limit of the norm that is so far below it limits nothing any more, it scales
_LINES_SINCE = 20  # of a resumed run, before its rate is compared with the schedule
_RARE = 1000  # steps: a row that gives NaN once in as many is no reason to train slower
_SKIPPED = re.compile(r"step (\d+): (.+); skipped")


def not_finite(evidence: Evidence) -> Finding:
    metrics = evidence.metrics
    skipped = metrics["train/skipped_steps"].finite()
    count = float(skipped.values.max()) if len(skipped) else 0.0
    rollbacks = max(metrics["train/rollbacks"].finite().values, default=0.0)
    steps = [(int(m[1]), m[2]) for line in (evidence.run.log if evidence.run else ()) if (m := _SKIPPED.search(line))]
    holes = metrics["train/loss"].steps[~np.isfinite(metrics["train/loss"].values)]
    count = max(count, float(len(steps)))
    gave_up = evidence.run is not None and evidence.run.status.get("exit_code") == 5
    numbers = {"skipped_steps": count, "rollbacks": float(rollbacks)}
    if not count and not rollbacks and not gave_up:
        return _lost(evidence, holes) if len(holes) else ok("no NaN or Inf in loss or gradient", **numbers)
    if steps:
        first = f"first at step {steps[0][0]}: {steps[0][1]}"
    else:
        gone = holes if len(holes) else skipped.steps[skipped.values > 0]
        first = f"first seen at step {gone[0]}" if len(gone) else "log.txt does not say where"
    seen = evidence.metrics.last_step
    before = skipped.between(0, seen - _RARE)
    recent = float(skipped.last - max(before.values, default=0.0)) if len(skipped) else 0.0
    recent = max(recent, float(sum(step > seen - _RARE for step, _ in steps)))
    many = gave_up or rollbacks > 0 or recent > 2 or count > max(2, seen / _RARE)
    if not many and count <= seen / _RARE:
        return Finding(
            Verdict.WARN,
            f"{count:.0f} of {seen} steps left out because loss or gradient was not finite; {first}",
            numbers=numbers,
            why="The steps were left out whole, so weights are intact. Once in a while a single row causes it.",
            advice="look for that row if it comes again: trm inspect-dataset FILE",
        )
    return Finding(
        Verdict.FAIL if many else Verdict.WARN,
        f"{count:.0f} steps left out because loss or gradient was not finite, {rollbacks:.0f} rollbacks; {first}",
        numbers=numbers,
        why="The steps were left out whole, so weights are intact. Rates too high for these data or broken inputs "
        "cause it; once in a while a single row does.",
        fix=_tamer(evidence),
    )


def _lost(evidence: Evidence, holes: NDArray[np.int64]) -> Finding:
    """Lines without a loss in the log of a program that leaves no step out."""
    lines = len(evidence.metrics["train/loss"])
    return Finding(
        Verdict.FAIL if len(holes) > max(2, lines / _RARE) else Verdict.WARN,
        f"the loss is not finite in {len(holes)} of {lines} lines, first at step {holes[0]}",
        numbers={"lines": float(len(holes))},
        why="Nothing says that these steps were left out, so the weights may be lost with them. Rates too high for "
        "these data or broken inputs cause it.",
        fix=_tamer(evidence),
    )


def _tamer(evidence: Evidence) -> dict[str, Any]:
    return {**slower(evidence, 2), "training.grad_clip_norm": evidence.settings.training.grad_clip_norm / 2}


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
        why="About a thousandth is usual. Steps this large leave every valley that they find.",
        # Weights that ran away make later steps look small beside them, so the largest step counts.
        fix=slower(evidence, 10.0 ** math.ceil(math.log10(max(ratio, peak / 3) / 2e-3))),
    )


def never_recovered(evidence: Evidence, peak: float, loss: float) -> bool:
    """Whether large steps have thrown the weights to where nothing is learned, in a loss that does not show it: that of
    stablemax grows as the logarithm of the logits.
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
            why="The schedule is not asked for the step that training is at, or something else sets the rate.",
            advice="look at what calls trm_core.optim.schedule.lr_factor, and in which unit it counts",
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
            "A warm-up is for the first few per cent of a run. This one is that of a longer run.",
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
            "A model that begins at random has to leave where it began. Such a rate is one for fine-tuning, or for "
            "many more steps.",
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
    """The default rates, of those that are below."""
    training, usual = evidence.settings.training, TrainingConfig()
    rates = {"training.base_lr": (training.base_lr, usual.base_lr)}
    if training.optimizer == "muon":
        rates["training.muon_lr"] = (training.muon_lr, usual.muon_lr)
    return {key: default for key, (rate, default) in rates.items() if rate < default}


def way_to_go(evidence: Evidence) -> float:
    """How far the planned steps can move a weight, in units of its first size: the sum of the rates (optimisers of the
    Adam kind move a weight by at most about the rate) over one through the root of the width.
    """
    training, steps = evidence.settings.training, evidence.learning_steps
    rate = max(training.base_lr, training.muon_lr if training.optimizer == "muon" else 0.0)
    marks = np.linspace(0, max(steps - 1, 0), min(steps, 100)).astype(int).tolist()
    factors = [lr_factor(step, training.lr_warmup_steps, steps, training.lr_min_ratio) for step in marks]
    return rate * steps * float(np.mean(factors)) * math.sqrt(evidence.settings.arch.hidden_size)


def rate_over_schedule(evidence: Evidence) -> float:
    """The logged learning rate over that of the config's schedule, as a median over the learning steps; NaN without."""
    training, learning = evidence.settings.training, evidence.learning_steps
    rate = evidence.metrics["train/lr"].between(_began(evidence), learning).finite()
    if len(rate) < (_LINES_SINCE if _went_on(evidence) else 1) or not training.base_lr:
        return math.nan
    rate = rate.tail(0.5)
    expected = [
        training.base_lr * lr_factor(int(step) - 1, training.lr_warmup_steps, learning, training.lr_min_ratio)
        for step in rate.steps
    ]
    lowered = evidence.metrics["train/rate_factor"].finite()
    factor = np.interp(rate.steps, lowered.steps, lowered.values) if len(lowered) else 1.0
    return float(np.median(rate.values / (np.array(expected) * factor + 1e-30)))


def _went_on(evidence: Evidence) -> bool:
    """Whether training was resumed, perhaps with other settings than those of its first lines."""
    return evidence.run is not None and len(evidence.run.starts) > 1


def _began(evidence: Evidence) -> float:
    """First step of the newest start; infinite where nobody knows it."""
    if evidence.run is None or not _went_on(evidence):
        return 0
    step = evidence.run.last_start.get("step")
    return step + 1 if isinstance(step, int) else math.inf


def exploding(evidence: Evidence) -> Finding:
    metrics, training = evidence.metrics, evidence.settings.training
    norm = metrics["train/grad_norm"].between(0, evidence.learning_steps).finite()
    norm = norm.between(min(training.lr_warmup_steps, evidence.learning_steps // 2))
    if len(norm) < 4:
        return unknown("too few steps after warm-up")
    means = block_means(norm)
    early, late, limit = (
        float(np.median(means[: max(len(means) // 4, 1)])),
        float(np.median(means[-3:])),
        training.grad_clip_norm,
    )
    peak = float(norm.values.max())
    numbers = {"early": early, "late": late, "peak": peak, "clip": limit}
    text = f"gradient norm {early:.3g} early, {late:.3g} late, at most {peak:.3g} (clipped at {limit:g})"
    if limit < _TINY * early:
        limit = 0.1 * early  # next to a limit that is too small any norm is large
    grows = late / max(early, 1e-12)
    # A norm that is large and stays so is held by the clip; see `clipping`.
    if late > 10 * limit and (grows > 5 or (late > 100 * limit and grows > 2)):
        verdict = Verdict.FAIL
    elif (late > 10 * limit and rising(norm) < 0.001) or peak > 1000 * max(limit, early):
        verdict = Verdict.WARN
    else:
        return ok(text, **numbers)
    tighter = {"training.grad_clip_norm": limit / 2} if grows > 2 else {}
    return Finding(
        verdict,
        text,
        "likely",
        numbers,
        "Clipping keeps the size of a step, but its direction is the largest term's. Norms that grow announce NaN.",
        {**slower(evidence, 3), **tighter},
    )


def dead_layer(evidence: Evidence) -> Finding:
    metrics, training = evidence.metrics, evidence.settings.training
    groups = [name for name in metrics if name.startswith("train/grad/layer_")]
    if not has_policy(evidence) or not len(metrics["train/dqn_loss"]):
        # Before Q-learning begins that is right, and whether it begins is asked elsewhere.
        groups = [name for name in groups if not name.endswith("value_net")]
    if metrics["train/memory_filled"].last == 0:
        # An empty bank gives back nothing, whatever is asked of it; why it is empty is asked elsewhere.
        groups = [name for name in groups if not name.endswith("memory")]
    if evidence.settings.loss_weights.reconstruction_loss == 0:
        # Left out on purpose: nothing else trains them, and only a selector by checksums asks them anything.
        unused = {"train/grad/layer_sketch_decoder"}
        if evidence.settings.dqn.expansion_selector != "checksum":
            unused.add("train/grad/layer_reconstruction")
        groups = [name for name in groups if name not in unused]
    warm = min(training.lr_warmup_steps, evidence.learning_steps // 4)
    dead = {}
    for name in groups:
        norms = metrics[name].between(warm, evidence.learning_steps - 1).finite().values
        # The value net waits for its buffer, the cmi head for the first openings: the second half is what counts.
        late = norms[len(norms) // 2 :]
        if len(late) >= 3 and np.mean(late == 0) > 0.9:
            dead[name.removeprefix("train/grad/layer_")] = float(np.mean(norms == 0))
    zero = metrics["train/grad/num_zero"].between(warm, evidence.learning_steps - 1)
    means = block_means(zero)
    numbers = {"dead_parts": float(len(dead))} | ({"parameters_without": float(means[-1])} if len(means) else {})
    if dead:
        names = ", ".join(sorted(dead))
        return Finding(
            Verdict.FAIL,
            f"no gradient reaches {names}",
            numbers=numbers,
            why="A part without a gradient stays as it was drawn at random. Its output is unused, its loss has "
            "weight 0, or it is cut off.",
            advice="see which loss term should reach it (loss_weights) and whether its output is used",
        )
    unmoved = median(metrics["train/unmoved_weights"].between(warm, evidence.learning_steps).tail(0.5))
    if unmoved > 0.005:
        return Finding(
            Verdict.FAIL,
            f"{100 * unmoved:.2g} % of the weights have a gradient, and no step moves them",
            numbers={**numbers, "unmoved": unmoved},
            why="They are in no optimiser, or in one whose rate is 0, and stay as they were drawn at random.",
            advice="build optimisers from all of model.parameters(), as trm_core.optim.build does",
        )
    if not groups:
        return unknown("training.monitor_gradients is off")
    return ok(f"all {len(groups)} parts have a gradient", **numbers)


def clipping(evidence: Evidence) -> Finding:
    training = evidence.settings.training
    share = median(evidence.metrics["train/grad_clip_ratio"].between(training.lr_warmup_steps, evidence.learning_steps))
    if math.isnan(share):
        return unknown("too few steps after warm-up")
    text = f"{100 * share:.0f} % of the steps are clipped at training.grad_clip_norm={training.grad_clip_norm:g}"
    # As it was early on: where norms explode later, it is not the limit that is wrong.
    norms = evidence.metrics["train/grad_norm"].between(training.lr_warmup_steps, evidence.learning_steps)
    norm = min(median(norms), median(norms.head(0.25)))
    # These optimisers divide by the gradient's size, so clipping does little but even out steps.
    if share < 0.98 or norm < 10 * training.grad_clip_norm:
        return ok(text, share=share)
    if training.grad_clip_norm < _TINY * norm:
        return Finding(
            Verdict.FAIL,
            f"{text}, {norm / training.grad_clip_norm:.2g} times below the usual norm",
            "likely",
            {"share": share, "norm": norm},
            "Gradients scaled down this far drown in what optimisers add for stability, and nothing moves.",
            {"training.grad_clip_norm": 1.0},
        )
    return Finding(
        Verdict.WARN,
        text,
        "possible",
        {"share": share},
        "Every step has the same size, whatever the gradient says.",
        {"training.grad_clip_norm": 4 * training.grad_clip_norm},
    )


CHECKS = (
    WARMUP,
    Check(
        "lr-too-high",
        ("gradients", "accuracy", "config"),
        "loss jumps, or stays where it began",
        "pipeline.md Issue 5, Workflow 5 step 4",
        ("config", "metrics"),
        lr_too_high,
        watched=True,
    ),
    Check(
        "dead-layer",
        ("gradients", "accuracy"),
        "accuracy stops early",
        "pipeline.md Workflow 5 step 6",
        ("config", "metrics"),
        dead_layer,
        watched=True,
    ),
    Check("clipping", ("gradients",), "grad_clip_ratio near 1", "pipeline.md 5.5", ("config", "metrics"), clipping),
    Check(
        "exploding-gradients",
        ("gradients",),
        "grad_norm above 10 and growing",
        "pipeline.md Issue 5",
        ("config", "metrics"),
        exploding,
        watched=True,
    ),
    Check(
        "nan",
        ("gradients",),
        "loss becomes NaN, training crashes",
        "pipeline.md Issue 5, Workflow 2",
        ("config", "metrics"),
        not_finite,
        watched=True,
    ),
    Check(
        "lr-too-low",
        ("gradients", "accuracy", "config"),
        "loss does not fall",
        "pipeline.md Workflow 5 step 4",
        ("config", "metrics"),
        lr_too_low,
        watched=True,
    ),
)
