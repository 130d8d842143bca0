"""Checks of speed and memory use."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import numpy as np

from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.checks.settings import begun_at, has_policy
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.series import Metrics, Series
from trm_core.diagnose.statistics import block_means, distinct, median, middle, rising
from trm_core.evaluation.periodic import PERIODIC_ROWS

_LEAST_BLOCKS, _LINES_OF_BLOCK = 8, 4
_SETTLED = 100  # steps; before that, allocators, caches and late imports grow in every run
_OUT_OF_MEMORY = re.compile(r"out of memory", re.IGNORECASE)


def waiting(metrics: Metrics) -> float:
    """Share of the time of all steps spent waiting for data; NaN if nothing was logged. Lines are weighted by their
    duration, because the waiting may be concentrated in a few batches.
    """
    share, rate = metrics["train/data_time_share"].tail(0.8), metrics["train/samples_per_sec"].tail(0.8)
    if len(share) != len(rate):
        return median(share)
    taken = 1 / np.maximum(rate.values, 1e-9)
    known = np.isfinite(share.values) & np.isfinite(taken)
    return float(np.average(share.values[known], weights=taken[known])) if known.any() else math.nan


def loader(evidence: Evidence) -> Finding:
    share = waiting(evidence.metrics)
    if math.isnan(share):
        return unknown("train/data_time_share was not logged")
    workers = evidence.settings.data.num_workers
    text = f"{100 * share:.0f} % of a step is spent waiting for data, with data.num_workers={workers}"
    if share <= 0.2:
        return ok(text, share=share)
    return Finding(
        Verdict.FAIL if share > 0.4 else Verdict.WARN,
        text,
        numbers={"share": share, "workers": float(workers)},
        why="The network waits while samples are read. Loader processes read ahead.",
        fix={"data.num_workers": 4 if workers < 4 else 2 * workers},
        advice="a faster disk, or a capsule file with larger chunks, if more processes do not help",
    )


def logging(evidence: Evidence) -> Finding:
    share, interval = (
        median(evidence.metrics["train/logging_time_share"].tail(0.8)),
        evidence.settings.training.log_interval,
    )
    if math.isnan(share):
        return unknown("train/logging_time_share was not logged")
    text = f"{100 * share:.1f} % of the time is logging, with training.log_interval={interval}"
    if share <= 0.05:
        return ok(text, share=share)
    return Finding(
        Verdict.FAIL if share > 0.2 else Verdict.WARN,
        text,
        numbers={"share": share, "interval": float(interval)},
        why="Each line of metrics is measured, written, and passed to every logger. Fewer lines cost less.",
        fix={"training.log_interval": 10 * interval},
    )


def evaluating(evidence: Evidence) -> Finding:
    """Compare the work of the evaluations with that of the steps between them, in cycles of the network: H forward for
    each reasoning step, and in training about two more for the backward pass through the last one.
    """
    config, rows = evidence.settings, min(evidence.evaluated_rows, PERIODIC_ROWS)
    training, measured = config.training, median(evidence.metrics["eval/steps"].finite())
    steps = config.arch.max_steps if math.isnan(measured) else measured
    a_step = (config.arch.H_cycles + 2) / config.arch.H_cycles * training.global_batch_size
    between = a_step * training.eval_interval
    share = rows * steps / (rows * steps + between)
    text = (
        f"an evaluation of {rows} rows every {training.eval_interval} steps of {training.global_batch_size} is some "
        f"{100 * share:.0f} % of the work"
    )
    numbers = {"share": share, "rows": float(rows), "interval": float(training.eval_interval)}
    if not rows:
        return unknown("the number of rows that are evaluated is not known")
    if share <= 0.2 or training.eval_interval >= training.total_steps:  # there has to be one at the end
        return ok(text, **numbers)
    fitting = math.ceil(rows * steps / a_step * 19)  # 5 %
    return Finding(
        Verdict.FAIL if share > 0.5 else Verdict.WARN,
        text,
        "likely",
        numbers,
        "Nothing is learned meanwhile. A checkpoint is saved at each evaluation, too.",
        {"training.eval_interval": max(min(fitting, training.total_steps), training.eval_interval)},
    )


def speed(evidence: Evidence) -> tuple[Series, str]:
    """Speed since the last start (an earlier one may have had a different machine or load), and its unit: wall-clock
    steps per second in blocks of lines, or samples per second within steps if the former is unknown.
    """
    first = max(evidence.metrics.last_step * 0.05, begun_at(evidence))
    if evidence.run is not None:  # other programs may mean something else by steps_per_sec
        mean = evidence.metrics["train/steps_per_sec"].between(first).finite()
        # Each value is a mean since the start; recover the seconds since then.
        seconds = (mean.steps - max(begun_at(evidence) - 1, 0)) / np.maximum(mean.values, 1e-9)
        # Evaluations take time between some lines only, so blocks have to be long enough to contain both kinds.
        ends = distinct(np.linspace(0, len(mean) - 1, min(len(mean) // _LINES_OF_BLOCK, 40) + 1).astype(np.int64))
        spent = np.diff(seconds[ends]) if len(mean) else np.zeros(0)
        if len(spent) >= _LEAST_BLOCKS and bool((spent > 0).all()):
            return Series(mean.steps[ends[1:]], np.diff(mean.steps[ends]) / spent), "steps/s"
    return evidence.metrics["train/samples_per_sec"].between(first).finite(), "samples/s"


def slows_down(evidence: Evidence) -> Finding:
    rate, unit = speed(evidence)
    means = rate.values if unit == "steps/s" else block_means(rate)
    if len(means) < _LEAST_BLOCKS:
        return unknown("too few steps were logged")
    early, late = middle(means[: len(means) // 2]), middle(means[-3:])
    text = f"{early:.4g} {unit} in the first half, {late:.4g} now"
    quarters = [middle(part) for part in np.array_split(means, 4)]
    # Another process takes its share at once and gives it back; something that grows with the steps slows each quarter.
    steadily = all(after < 0.95 * before for before, after in pairwise(quarters)) and rising(rate) > 0.995
    if steadily and quarters[-1] < 0.6 * quarters[0]:
        return Finding(
            Verdict.WARN,
            f"{', '.join(f'{quarter:.4g}' for quarter in quarters)} {unit} in the quarters of the run",
            "possible",
            {"early": quarters[0], "late": quarters[-1]},
            "Each quarter is slower than the one before: the run goes through something that grows, such as a list or "
            "a history, or others use the machine more and more.",
            advice="check your own code for anything kept from every step; trm profile shows which stage it is",
        )
    if late > 0.5 * early:
        return ok(text, early=early, late=late)
    return Finding(
        Verdict.WARN,
        text,
        "possible",
        {"early": early, "late": late},
        "Half as fast as before: another process on this machine, memory that swaps, or a disk that filled.",
        advice="check the machine; trm profile --config shows which stage it is",
    )


def state_bytes(evidence: Evidence) -> float:
    """Approximate bytes of a stored transition: the buffer's pages become resident memory as it fills."""
    arch, dtype = evidence.settings.arch, evidence.settings.dqn.buffer_dtype
    width = arch.hidden_size * (arch.q_head_tokens if arch.q_head_type == "attention" else 1)
    width += arch.q_head_hidden_dim if arch.q_head_type == "rnn" else 0  # its hidden state
    return width * (2 if dtype == "float16" else 4) + 64.0


def leak(evidence: Evidence) -> Finding:
    metrics = evidence.metrics
    name = "train/gpu_memory_gb" if "train/gpu_memory_gb" in metrics else "train/rss_gb"
    memory = metrics[name].finite()
    # What the first batches and the first evaluation load is not a leak.
    memory = memory.between(0.2 * metrics.last_step)
    filled = metrics["train/dqn_buffer_size"]
    if name == "train/rss_gb" and len(filled) and has_policy(evidence):
        held = np.interp(memory.steps, filled.steps, filled.values) * state_bytes(evidence) / 1e9
        memory = Series(memory.steps, memory.values - held)
    means = block_means(memory)
    if len(means) < 8 or memory.steps[-1] - memory.steps[0] < _SETTLED:
        return unknown("too few steps were logged")
    growth, at_first = float(means[-1] - means[0]), float(means[0])
    steps = float(memory.steps[-1] - memory.steps[0])
    # A leak continues, so memory grows in both halves; something that fills up once does not.
    half = len(means) // 2
    goes_on = means[-1] - means[half] > 0.25 * growth
    chance = rising(memory)
    per_step = growth * 1e6 / max(steps, 1)
    numbers = {"growth_gb": growth, "at_first_gb": at_first, "kb_per_step": per_step}
    text = f"memory {at_first:.2f} -> {at_first + growth:.2f} GB over {steps:.0f} steps ({per_step:.1f} kB a step)"
    if chance > 0.001 or growth < max(0.05 * at_first, 0.02) or not goes_on:
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL if growth > 0.15 * at_first else Verdict.WARN,
        text,
        "likely",
        numbers,
        "Something is kept from every step: tensors in a list, or graphs held by a number that was not detached.",
        advice="trm profile --config shows the owner; usually it is your own code that holds on to tensors",
    )


def out_of_memory(evidence: Evidence) -> Finding:
    facts = evidence.facts
    lines = (*facts.log_of_last_start, str(facts.status.get("error", "")))
    said = [line for line in lines if _OUT_OF_MEMORY.search(line)]
    if not said:
        return ok("no step ran out of memory")
    parts = _more_parts(evidence)
    return Finding(
        Verdict.FAIL,
        said[-1].strip()[:300],
        numbers={},
        why="Activations grow with the rows computed at a time. Computing the batch in parts needs less memory for the "
        "same gradient.",
        fix={} if parts is None else {"training.accumulation_steps": parts},
        advice="trm profile --estimate shows what each owner takes",
    )


def _more_parts(evidence: Evidence) -> int | None:
    """Fewest parts, at least twice as many as now, that divide each process's rows evenly; None if there are none."""
    parts, rows = evidence.settings.training.accumulation_steps, int(evidence.rows_per_process)
    return next((more for more in range(2 * parts, rows + 1) if rows % more == 0), None)


def gpu_idle(evidence: Evidence) -> Finding:
    used, available = str(evidence.facts.last_start.get("device", "")), evidence.facts.hardware.get("gpus")
    if used != "cpu" or not available:
        return ok(f"on {used or 'an unknown device'}")
    return Finding(
        Verdict.WARN,
        f"a GPU was there ({available}), but training ran on the CPU",
        "certain",
        why="training.device says so.",
        fix={"training.device": "auto"},
    )


CHECKS = (
    Check(
        "out-of-memory",
        ("memory",),
        "CUDA out of memory",
        "pipeline.md Issue 6, Workflow 4",
        ("run", "config"),
        out_of_memory,
    ),
    Check(
        "memory-leak",
        ("memory",),
        "out of memory after a while",
        "pipeline.md Workflow 4 step 1",
        ("config", "metrics"),
        leak,
        watched=True,
    ),
    Check(
        "loader-starvation",
        ("speed",),
        "less than a step per second",
        "pipeline.md Issue 7, Workflow 7 step 2",
        ("config", "metrics"),
        loader,
        watched=True,
    ),
    Check(
        "evaluation-frequency",
        ("speed",),
        "steps are slow, and there are many evaluations",
        "ours",
        ("config", "data"),
        evaluating,
    ),
    Check(
        "logging-frequency",
        ("speed",),
        "logging takes long",
        "pipeline.md Issue 7, Workflow 7 step 6",
        ("config", "metrics"),
        logging,
        watched=True,
    ),
    Check(
        "slows-down",
        ("speed",),
        "steps per second fall",
        "pipeline.md Issue 7",
        ("config", "metrics"),
        slows_down,
        watched=True,
    ),
    Check(
        "gpu-idle",
        ("speed", "environment"),
        "training is slow, the GPU idle",
        "pipeline.md Issue 7",
        ("run", "config"),
        gpu_idle,
    ),
)
