"""The troubleshooting guide in pipeline.md, item by item: the checks that cover it, or why there is none.

python -m trm_core.diagnose.guide > docs/diagnose.md
"""

from __future__ import annotations

from dataclasses import dataclass

from trm_core.diagnose.check import GROUPS
from trm_core.diagnose.registry import CHECKS, of_group
from trm_core.markdown import table


@dataclass(frozen=True)
class Item:
    """An item of the guide. `note`: how we differ from the guide, or why there is no check."""

    title: str
    checks: tuple[str, ...] = ()
    note: str = ""


GUIDE: tuple[tuple[str, tuple[Item, ...]], ...] = (
    (
        "Issues",
        (
            Item("1 CapsuleState missing", ("children-missing", "expansion-off", "two-actions")),
            Item(
                "2 Q-action not stored",
                ("two-actions", "dqn-not-learning"),
                "every decision is stored by construction; what can go wrong is a policy that is off or stores nothing",
            ),
            Item("3 DQN loss always zero", ("buffer-min-size", "dqn-not-learning")),
            Item(
                "4 expansion never happens",
                ("expansion-never", "expansion-price", "epsilon-zero", "entropy-collapse", "two-actions"),
                "5-20 % is one task's figure: only the extremes, and opening nothing where a probe gains by it, are "
                "faults",
            ),
            Item("5 gradient NaN or Inf", ("nan", "lr-too-high", "exploding-gradients", "warmup-missing")),
            Item("6 out of memory", ("out-of-memory", "memory-leak"), "what fits: trm profile --estimate"),
            Item(
                "7 training too slow",
                ("loader-starvation", "logging-frequency", "slows-down", "gpu-idle"),
                "steps and samples per second belong to a GPU and a model; trm profile measures what would help",
            ),
            Item(
                "8 accuracy not improving",
                (
                    "accuracy-at-chance",
                    "loss-not-falling",
                    "labels-constant",
                    "labels-shuffled",
                    "predictions-collapse",
                ),
                "5 % and 15 % belong to 2,052 classes: chance is counted from the labels",
            ),
        ),
    ),
    (
        "Workflow 1: new feature not working",
        (
            Item("1 data flow", ("children-missing",)),
            Item("2 model forward", ("two-actions", "expansion-off", "expansion-never")),
            Item("3 expansion logic", ("expansion-never",), "that an opening opens is a test of the code"),
            Item("4 loss computation", ("expansion-never", "loss-weights"), "expansion_cost is reported, not added"),
            Item("5 metrics", ("expansion-never",)),
        ),
    ),
    (
        "Workflow 2: training crashes with NaN",
        (
            Item("1 when and in which term", ("nan",), "step and term come from log.txt"),
            Item("2 gradient diagnostics", ("nan", "exploding-gradients", "dead-layer")),
            Item("3 learning rate", ("lr-too-high", "warmup-missing"), "by the size of a step relative to the weights"),
            Item(
                "4 numerical stability",
                ("q-values-diverge",),
                "confident answers healthily leave [-10, 10], so it is not a check",
            ),
            Item("5 quick fixes", ("nan",), "going back to a checkpoint at half the rate happens by itself"),
        ),
    ),
    (
        "Workflow 3: DQN not learning",
        (
            Item("1 replay buffer", ("buffer-min-size",)),
            Item("2 transition storage", ("dqn-not-learning", "rewards-zero", "replay-stale")),
            Item("3 Q-head output", ("two-actions", "entropy-collapse", "epsilon-zero")),
            Item("4 DQN loss", ("q-values-diverge", "target-frozen")),
            Item(
                "5 rewards",
                ("rewards-zero", "terminal-reward-sign"),
                "components are logged separately: train/dqn_reward_*",
            ),
        ),
    ),
    (
        "Workflow 4: out of memory",
        (
            Item("1 memory profiling", ("memory-leak",)),
            Item("2 memory hogs", ("out-of-memory",), "trm profile: bytes by owner"),
            Item("3 quick reduction", ("out-of-memory",), "empty_cache() frees nothing that a step could not reuse"),
            Item("4 architecture", (), "a smaller model is a decision, not a repair; trm profile --estimate compares"),
            Item("5 distributed training", (), "the number of GPUs is not an override"),
        ),
    ),
    (
        "Workflow 5: accuracy not improving",
        (
            Item("1 loss analysis", ("loss-not-falling",), "a trend with its significance instead of 5.0 and 3.0"),
            Item("2 data", ("labels-constant", "labels-shuffled", "labels-leaked", "duplicate-across-splits")),
            Item("3 predictions", ("predictions-collapse",)),
            Item("4 learning rate", ("lr-too-high", "lr-too-low", "warmup-missing")),
            Item(
                "5 hyperparameters", ("overfitting", "accuracy-falls"), "in the guide's order only where a check asks"
            ),
            Item("6 architecture", ("dead-layer",), "100 million parameters do not fit every task"),
        ),
    ),
    (
        "Workflow 6: expansion never happens",
        (
            Item("1 exploration", ("epsilon-zero", "entropy-collapse")),
            Item(
                "2 entropy term",
                ("entropy-weight",),
                "it biases Q; epsilon does the exploring, so leaving it off is no fault",
            ),
            Item("3 reward shaping", ("rewards-zero", "children-equal-sketch")),
            Item("4 cost", ("expansion-price",)),
            Item("5 DQN training", ("dqn-not-learning", "q-values-diverge")),
            Item("6 forced exploration", ("epsilon-zero",)),
        ),
    ),
    (
        "Workflow 7: performance",
        (
            Item("1 profile", (), "trm profile"),
            Item("2 data loading", ("loader-starvation",)),
            Item("3 forward pass", (), "milliseconds belong to a machine; trm profile measures changes"),
            Item("4 backward pass", (), "the same"),
            Item("5 communication", (), "the same"),
            Item("6 logging", ("logging-frequency",)),
        ),
    ),
    (
        "Tuning guide",
        (
            Item("accuracy not improving", ("accuracy-at-chance", "loss-not-falling", "overfitting")),
            Item("unstable (NaN)", ("nan", "lr-too-high", "exploding-gradients", "warmup-missing")),
            Item("DQN not learning", ("buffer-min-size", "entropy-collapse", "rewards-zero")),
            Item("expansion never used", ("expansion-never", "expansion-price")),
            Item("too slow", ("loader-starvation", "logging-frequency")),
            Item("out of memory", ("out-of-memory",)),
        ),
    ),
    (
        "Training checklist",
        (
            Item("dataset has what is needed", ("children-missing",)),
            Item("config has correct paths", (), "a wrong path ends trm train with code 3 or 4 and a hint"),
            Item("DQN on with three actions", ("two-actions", "expansion-off")),
            Item("W&B project initialised", ("wandb-ready",)),
            Item("enough GPU memory", ("out-of-memory",), "before the run: trm profile --estimate"),
            Item("loss falls, no NaN", ("loss-not-falling", "nan")),
            Item("accuracy above guessing", ("accuracy-at-chance",)),
            Item("gradient norm in range", ("exploding-gradients", "clipping")),
            Item("no out of memory", ("out-of-memory",)),
            Item("replay buffer fills", ("buffer-min-size", "dqn-not-learning")),
            Item("lm_loss < 5.0, accuracy > 15 %", ("loss-not-falling", "accuracy-at-chance"), "relative instead"),
            Item("dqn_loss > 0", ("dqn-not-learning",)),
            Item("actions not all the same", ("entropy-collapse",)),
            Item("memory stable", ("memory-leak",)),
            Item("checkpoint saved and loads", ("checkpoint-torn",)),
            Item("final metrics logged", ("run-ended",)),
            Item("tested on held-out data", ("policy-loses", "overfitting"), "trm train evaluates what it saved"),
        ),
    ),
)

_INTRODUCTION = """\
# trm diagnose

<!-- Generated: python -m trm_core.diagnose.guide > docs/diagnose.md -->

When a run does not learn, crashes or looks odd, start here: `trm diagnose` finds what is wrong, says why, and how to
fix it. `trm diagnose [GROUP] [RUN]` checks a run directory, `trm diagnose --config FILE` a config before its run
(with `--probe` also its first steps), and `training.watch=true` checks during training.

- **Findings.** Each check says ok, warn, fail or that it cannot tell, with its numbers, the reason, and overrides
  that fix it. Failures come first, causes before symptoms: fix the first one, and run it again. The exit code is 1 if
  something fails.
- **Output.** `--fix FILE` writes the config with the overrides of the first finding and of all findings that are
  certain; `--html FILE` writes one page with the checks beside the curves; `--json` is for programs.
- **Intended settings.** `--ignore CHECK` skips a check whose finding is intended, such as `--ignore loss-weights` if
  every row is meant to think all steps.
- **Other logs.** RUN may also be a folder of TensorBoard event files or of Weights & Biases (offline runs too), of
  this project or another; with `--config` in addition more checks can tell.
- **What is read.** A finished run is read without torch. Only some thousand lines of a long metrics.jsonl are read,
  some thousand samples of a capsule file, and only the sizes of checkpoints past 100 MB: `trm inspect-dataset` and
  `trm checkpoints` read everything. With several training files (data.path as a list) labels are counted over all of
  them, by their weights (folders of puzzles: by their groups), and the samples of the first four files are examined.
- **Data alone.** `trm inspect-dataset FILE` shows the checks that need nothing but data, without a config. It
  compares every held-out split with training (the worst is named) and counts equal samples over all rows. `--quick`
  skips them.

How `labels-leaked` tells a leaked label from an easy task:

- For at least 80 % of the classes, a threshold on one coordinate of the sketches catches 30 % or more of the class,
  and 99 % of what it catches is right. There is about one such coordinate for each class, and without these
  coordinates the same holds for less than half as many classes. (In an easy task several coordinates tell each
  class.)
- Or: sorted by one coordinate, most samples have the label of the one before; sorted by any other, they do not.
"""


def page() -> str:
    """The text of docs/diagnose.md."""
    lines = [
        _INTRODUCTION,
        "## Checks",
        "",
        "From causes to symptoms. The column *during* marks the checks of `training.watch`.",
        "",
    ]
    rows = [
        (f"`{c.id}`", c.symptom, ", ".join(c.groups), ", ".join(c.needs), "yes" if c.watched else "") for c in CHECKS
    ]
    lines += table(("check", "symptom", "groups", "needs", "during"), rows)
    lines += ["", "Groups: " + ", ".join(f"`{group}` ({len(of_group(group))})" for group in GROUPS) + ", `all`.", ""]
    lines += ["## The guide in pipeline.md", ""]
    lines += [
        "For each item of the troubleshooting guide in this project's specification: the checks that cover it.",
        "",
    ]
    for title, items in GUIDE:
        answers = [(i.title, ", ".join(f"`{check}`" for check in i.checks) or "none", i.note) for i in items]
        lines += [f"### {title}", "", *table(("item", "checks", "note"), answers), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
