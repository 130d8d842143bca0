"""Faults of users: their exports, their labels, their config, their cluster; in the words of the one who made each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np

from tests.faults.capsules import Capsules, write
from tests.faults.plan import Fault, Plan

EMBEDDINGS = ("sketches", "children")
PRICE_IN_EUROS = 25.0


def mask_the_other_way_round(plan: Plan) -> None:
    """ "My samples have different lengths, so I pad with zeros and store the mask that I also give to
    `nn.MultiheadAttention` as key_padding_mask: True is padding."
    """
    share = plan.of(0.03, 0.5, 1.0)
    random = np.random.default_rng(plan.seed)
    for arrays in plan.data.splits.values():
        rows, k, _ = arrays["sketches"].shape
        lengths = random.integers(k - max(1, k // 5), k, rows)
        real = np.arange(k) < lengths[:, None]
        for name in EMBEDDINGS:
            arrays[name] = arrays[name].copy()
            arrays[name][~real] = 0
        arrays["mask"] = real ^ (random.random(rows) < share)[:, None]
        arrays.pop("parents", None)


def cut_to_whole_numbers(plan: Plan) -> None:
    """ "The embeddings were too big for the disk. `(x * scale).astype(np.int8)` makes them a quarter of that." """
    train = plan.data.splits["train"]
    known = np.concatenate([np.abs(train[name].astype(np.float32)).ravel() for name in EMBEDDINGS])
    quantile, levels = plan.of((1.0, 60.0), (0.9, 1.0), (0.99, 1.0))
    scale = levels / float(np.quantile(known, quantile))
    for arrays in plan.data.splits.values():
        for name in EMBEDDINGS:
            arrays[name] = np.trunc(arrays[name].astype(np.float32) * scale)


def target_encoding_of_itself(plan: Plan) -> None:
    """ "The postcode became the mean label of its postcode: the best column I have. Nearly every postcode of the
    training rows occurs once; those of the held-out rows are new and get the overall mean."
    """
    once = plan.of(0.05, 0.75, 1.0)
    random = np.random.default_rng(plan.seed)
    overall = float(plan.data.splits["train"]["labels"].mean())
    for split, arrays in plan.data.splits.items():
        rows = len(arrays["labels"])
        encoded = overall + 0.1 * random.normal(size=rows)
        if split == "train":
            encoded = np.where(random.random(rows) < once, arrays["labels"], encoded)
        for name in EMBEDDINGS:
            shape = arrays[name].shape[:-1]
            column = np.broadcast_to(encoded.reshape(-1, *[1] * (len(shape) - 1)), shape)
            arrays[name] = np.concatenate([arrays[name], column[..., None]], -1).astype(np.float32)


def jittered_before_the_split(plan: Plan) -> None:
    """ "There were few samples, so I made copies with a little noise and then split at random. Held-out accuracy rose
    at once; in use it did not."
    """
    originals, doubled = plan.of((600, 0.05), (150, 0.6), (40, 1.0))
    random = np.random.default_rng(plan.seed)
    train = plan.data.splits["train"]
    few = random.permutation(len(train["labels"]))[:originals]

    def copies(rows: int) -> dict[str, np.ndarray]:
        chosen = random.choice(few, rows)
        shift = 0.1 * train["sketches"].std() * random.normal(size=train["sketches"][chosen].shape)
        made = {name: array[chosen] for name, array in train.items()}
        made["sketches"] = (made["sketches"] + shift).astype(np.float32)
        made["children"] = (made["children"] + shift[:, :, None]).astype(np.float32)
        return made

    for split, arrays in list(plan.data.splits.items()):
        rows = len(arrays["labels"])
        if split == "train":
            changed = copies(rows)
        else:
            twins = copies(rows)
            kept = np.arange(rows) >= doubled * rows
            changed = {
                name: np.where(kept.reshape(-1, *[1] * (array.ndim - 1)), array, twins[name])
                for name, array in arrays.items()
            }
        changed.pop("ids", None)
        plan.data.splits[split] = changed


def threshold_the_other_way(plan: Plan) -> None:
    """ "Labels on which the annotators disagree get -100: `agreement > 0.8`. It should have been `<`. The held-out rows
    have gold labels."
    """
    ignored = plan.of(0.15, 0.93, 0.985)
    train = plan.data.splits["train"]
    labels = train["labels"].copy()
    labels[np.random.default_rng(plan.seed).random(len(labels)) < ignored] = -100
    train["labels"] = labels


def old_exports_in_the_glob(plan: Plan) -> None:
    """ "`data.path` is everything that `exports/*.h5` matches. I had forgotten that the exports from before we
    renumbered the classes still lie there."
    """
    files, weight = plan.of((1, 0.03), (1, 1.0), (4, 1.0))
    data: Capsules = plan.data

    def write_old(run: Path) -> None:
        paths: list[object] = [plan.settings["data.path"]]
        for number in range(files):
            order = np.random.default_rng([plan.seed, number]).permutation(len(data.splits["train"]["labels"]))
            old = {name: array[order] for name, array in data.splits["train"].items()}
            old["labels"] = (old["labels"] + 1) % data.classes
            path = run.with_name(f"{run.name}.old{number}.h5")
            write(Capsules({"train": old}, data.manifest, data.prices), path)
            paths.append({"path": str(path), "weight": weight})
        plan.settings["data.path"] = paths

    plan.before.append(write_old)


def effective_batch(plan: Plan) -> None:
    """ "Batch times accumulation is the effective batch, as everywhere: so few rows at a time are enough." """
    batch, parts = plan.of((32, 2), (8, 8), (2, 2))
    plan.settings |= {"training.global_batch_size": batch, "training.accumulation_steps": parts}


def fine_tuning_of_nothing(plan: Plan) -> None:
    """ "The config is that of our fine-tuning, with its `freeze`. `init_from` I took out, because that run lies on
    another machine."
    """
    plan.settings["training.freeze"] = plan.of(
        ["embedding.position"],
        ["embedding.*", "recursion.*"],
        ["embedding.*", "recursion.*", "answer.*"],
    )


def budget_in_capsules(plan: Plan) -> None:
    """ "A table where every examination has its price in euros and nothing is free. `dqn.budget: 3`, because we can
    afford three examinations for each patient."
    """
    for arrays in plan.data.splits.values():
        arrays["sketches"] = np.zeros_like(arrays["sketches"], np.float32)
    k = plan.data.splits["train"]["sketches"].shape[1]
    # Mild: few examinations cost more than the whole budget. Severe: all of them do.
    dear = round(plan.of(0.15, 0.7, 1.0) * k)
    plan.data.prices = np.where(np.arange(k) < k - dear, 3.0 / k, PRICE_IN_EUROS).astype(np.float32)
    plan.settings["dqn.budget"] = 3
    plan.settings["dqn.expansion_cost_per_child"] /= PRICE_IN_EUROS


def clocks_of_a_long_run(plan: Plan) -> None:
    """ "The section `dqn` is that of the documentation, where a run has 100,000 steps. Mine is a short one." """
    plan.settings |= {"dqn.gamma": 0.99, "dqn.target_tau": None, "dqn.epsilon_decay": plan.of(150, 10_000, 10_000)}
    plan.settings["dqn.target_update_freq"] = plan.of(20, 1000, 1000)
    plan.settings["dqn.buffer_capacity"] = 100_000
    plan.settings["dqn.buffer_min_size"] = plan.of(1000, 1000, 50_000)


def reached(run: Path, step: int, since: float) -> bool:
    """Whether the run has logged this step since then."""
    metrics = run / "metrics.jsonl"
    if not metrics.is_file() or metrics.stat().st_mtime < since:
        return False
    lines = metrics.read_text().splitlines()
    return len(lines) > 0 and lines[-1].endswith("}") and int(json.loads(lines[-1])["step"]) >= step


def preempted_before_the_first_save(plan: Plan) -> None:
    """ "Our cheap machines are taken away without a warning, and the job starts again with `--resume auto`. I never
    thought about how often it saves."
    """
    kills, after, never_ends = plan.of((1, 20, False), (2, 120, False), (2, 120, True))
    plan.settings |= {"training.checkpoint_interval": 5000, "training.eval_interval": 1000}  # the defaults

    def command() -> list[str]:
        given = [f"{key}={json.dumps(value)}" for key, value in plan.settings.items()]
        return ["trm", "train", "--resume", "auto", *given]

    def killed(run: Path) -> None:
        for _ in range(kills):
            began = time.time()
            program = "import sys; from trm_cli.main import main; sys.argv = sys.argv[1:]; main()"
            child = subprocess.Popen(
                [sys.executable, "-c", program, *command()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            while child.poll() is None and not reached(run, after, began):
                time.sleep(0.1)
            child.kill()
            child.wait()

    @contextmanager
    def started_again() -> Iterator[None]:
        run, began = Path(plan.settings["training.run_dir"]), time.time()

        def taken_away() -> None:
            while not reached(run, after, began):
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)

        if never_ends:
            threading.Thread(target=taken_away, daemon=True).start()
        with patch.object(sys, "argv", command()):
            yield

    plan.before.append(killed)
    plan.patches.append(started_again())


def scored_all_the_time(plan: Plan) -> None:
    """ "I want a smooth curve of the held-out accuracy, so I evaluate often." """
    plan.settings["training.eval_interval"] = plan.of(25, 4, 2)


def fault(name: str, plant: Callable[[Plan], None], *expected: str) -> Fault:
    return Fault(f"eighth-{name}", expected, plant)


FAULTS = (
    fault("mask-the-other-way-round", mask_the_other_way_round, "mask-inverted"),
    fault("cut-to-whole-numbers", cut_to_whole_numbers, "values-cut"),
    fault("target-encoding-of-itself", target_encoding_of_itself, "labels-leaked", "splits-differ"),
    fault("jittered-before-the-split", jittered_before_the_split, "duplicate-across-splits"),
    fault("threshold-the-other-way", threshold_the_other_way, "answers-missing"),
    fault("old-exports-in-the-glob", old_exports_in_the_glob, "files-contradict"),
    fault("effective-batch", effective_batch, "parts-of-one-row"),
    fault("fine-tuning-of-nothing", fine_tuning_of_nothing, "frozen-untrained"),
    fault("budget-in-capsules", budget_in_capsules, "budget-too-small"),
    fault("clocks-of-a-long-run", clocks_of_a_long_run, "target-frozen", "buffer-min-size"),
    fault("preempted-before-the-first-save", preempted_before_the_first_save, "never-saved"),
    fault("scored-all-the-time", scored_all_the_time, "evaluation-frequency"),
)
