"""How fast a config learns, compared with its original settings.

    python -m benchmarks.learning_speed --out benchmarks/results/learning_speed.json --plot docs/images/learning.png
    python -m benchmarks.learning_speed sms data.source=sms.tsv --out benchmarks/results/learning_speed_sms.json

Trains a config as it is and with the settings of its first working version (`SUBJECTS`), for several seeds each, and
evaluates all checkpoints: accuracy of the learned policy and of opening everything, on held-out samples, against the
seconds spent in training steps (one thread each; without evaluation and saving). Schedules belong to the settings, so
in the middle of a run the learning rate has not yet fallen. Opening everything is unaffected by the price, which the
first version of the quickstart set eight times as high. Settings that are not listed stay as they are today.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import scores_by_checkpoint
from benchmarks.record import describe_machine, publish
from benchmarks.runs import ROOT, at_once, interval, train
from trm_core.config import load_config
from trm_core.training.run_dir import CONFIG, METRICS

EVERY = 200  # steps between checkpoints
POLICIES = ("learned", "all")
FIRST = (  # original settings that all configs had in common
    *("arch.restart_on_expand=false",),
    *("training.optimizer=adamatan2", "training.weight_decay=0.01"),
    *("dqn.loss=huber", "dqn.lr=null", "dqn.batch_size=256", "dqn.buffer_capacity=30000"),
    *("dqn.halt_exploration=0.3", "dqn.random_open_fraction=0.5", "dqn.price_spread=10.0"),
    *("dqn.expansion_cost_per_child=0.002", "dqn.reward_step_penalty=0.002"),
    "loss_weights.dqn_loss=0.005-0.5",
)


@dataclass(frozen=True)
class Subject:
    """The accuracy to reach with a config, and the settings of its first working version (on today's data)."""

    goal: float
    first: tuple[str, ...]

    @property
    def settings(self) -> dict[str, tuple[str, ...]]:
        return {"first": (*FIRST, *self.first), "now": ()}


SUBJECTS = {
    "quickstart": Subject(
        0.965,
        (
            *("data.build.augment_warps=0", "data.build.augment_shift=1"),
            *("training.total_steps=2400", "training.predictor_steps=1800", "dqn.epsilon_decay=1800"),
        ),
    ),
    "sms": Subject(
        0.96,
        (
            *("arch.hidden_size=128", "arch.H_cycles=2", "arch.L_cycles=2", "arch.max_steps=6", "arch.dropout=0.0"),
            *("training.total_steps=1500", "training.predictor_steps=null", "training.lr_min_ratio=0.1"),
            *("training.base_lr=1e-3", "training.lr_warmup_steps=100", "training.ema_decay=0.995"),
            *("dqn.expand_count=1", "dqn.gamma=0.99", "dqn.epsilon_end=0.05", "dqn.expansion_selector=cmi"),
        ),
    ),
}


def learn(config: str, folder: Path, more: list[str], job: tuple[str, int]) -> dict[str, Any]:
    """Train one run; its scores at each checkpoint, oldest first."""
    (name, seed), subject = job, SUBJECTS[config]
    run = folder / f"{name}-{seed}"
    often = [f"training.checkpoint_interval={EVERY}", "training.keep_checkpoints=100", "training.eval_interval=1000000"]
    settings = [*subject.settings[name], *often, *more, f"training.seed={seed}"]
    train(ROOT / "configs" / f"{config}.yaml", run, settings)
    clock = seconds_by_step(run / METRICS, load_config(run / CONFIG).config.training.global_batch_size)
    points = [
        {"step": step, "seconds": clock[step], **{one.policy: one.accuracy for one in scores}}
        for _, step, scores in scores_by_checkpoint(run, POLICIES)
    ]
    reached = {policy: when(points, policy, subject.goal) for policy in POLICIES}
    print(f"{name}, seed {seed}: {subject.goal:.1%} after seconds {reached}", file=sys.stderr)
    return {"settings": name, "seed": seed, "reached": reached, "points": points}


def seconds_by_step(metrics: Path, rows: int) -> dict[int, float]:
    """Seconds of training until each logged step, from the rows per step and the throughput of each interval."""
    found, spent, last = {}, 0.0, 0
    for line in map(json.loads, metrics.read_text().splitlines()):
        if "train/samples_per_sec" in line:
            spent += (line["step"] - last) * rows / line["train/samples_per_sec"]
            found[last := line["step"]] = spent
    return found


def when(points: list[dict[str, Any]], policy: str, goal: float) -> float | None:
    """Seconds until the first checkpoint from which the goal is met to the end; None if there is none."""
    kept = None
    for point in points:
        if point[policy] < goal:
            kept = None
        elif kept is None:
            kept = point["seconds"]
    return kept


def plot(runs: list[dict[str, Any]], goal: float, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(POLICIES), figsize=(9, 3.6), layout="constrained", sharey=True)
    for axis, policy in zip(axes, POLICIES, strict=True):
        for name, colour in (("first", "tab:gray"), ("now", "tab:blue")):
            for number, run in enumerate(one for one in runs if one["settings"] == name):
                seconds, accuracy = zip(*((p["seconds"], 100 * p[policy]) for p in run["points"]), strict=True)
                axis.plot(seconds, accuracy, color=colour, alpha=0.8, label=None if number else f"{name}, each seed")
        axis.axhline(100 * goal, color="black", linewidth=0.8, linestyle=":")
        axis.set(title=policy, xlabel="seconds of training steps", ylim=(80, 100), xlim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("% of held-out samples right")
    axes[0].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", choices=list(SUBJECTS), default="quickstart")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="in all runs")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe_machine(1)
    # Alternating, so that other load on the machine affects both.
    goal, names = SUBJECTS[arguments.config].goal, tuple(SUBJECTS[arguments.config].settings)
    jobs = [(name, seed) for seed in range(arguments.seeds) for name in names]
    with tempfile.TemporaryDirectory() as folder:
        runs = at_once(partial(learn, arguments.config, Path(folder), arguments.settings), jobs, arguments.jobs)
    final = {}
    for name in names:
        last = [run["points"][-1] for run in runs if run["settings"] == name]
        final[name] = {policy: interval([point[policy] for point in last]) for policy in POLICIES}
    if arguments.plot:
        plot(runs, goal, arguments.plot)
    record = {"config": arguments.config, "machine": machine, "jobs": arguments.jobs, "goal": goal}
    publish({**record, "final": final, "runs": runs}, arguments.out)


if __name__ == "__main__":
    main()
