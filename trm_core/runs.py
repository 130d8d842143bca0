"""One whole training run: config -> data -> run directory -> trainer -> evaluation of what lies on disk.

The only module that joins training with evaluation. Callers (the CLI, a notebook) hand in hooks for progress and
messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trm_core.config import LoadedConfig, dump_config, load_config
from trm_core.config.schema import Config, WeightedPath
from trm_core.data.source import ensure_built
from trm_core.data.store import CapsuleFile, open_capsules
from trm_core.errors import ConfigError, ExitCode, Interrupted, StoppedEarly, TrmError, UsageError
from trm_core.evaluation.evaluate import EvalRequest, evaluate_run
from trm_core.evaluation.report import EvaluationData, Evaluator, pick_split
from trm_core.model.trm import TinyRecursiveModel
from trm_core.training import run_dir
from trm_core.training.checkpoint_folders import list_checkpoints
from trm_core.training.drift import refuse_drift
from trm_core.training.environment import environment, pick_device
from trm_core.training.estimate import MemoryEstimate, estimate_memory
from trm_core.training.features import Features, resolve_features, resolved
from trm_core.training.loggers import open_loggers, truncate_after
from trm_core.training.stopping import StopFlag, stop_on_signals
from trm_core.training.trainer import Hooks, Trainer

_PERIODIC_ROWS = 1000  # rows of the evaluations during training; the final one takes all


@dataclass(frozen=True)
class RunHooks:
    """What a run tells its caller."""

    log: Callable[[str], None] = lambda message: None
    on_step: Callable[[int, dict[str, float]], None] = lambda step, values: None
    on_build: Callable[[str, int, int], None] | None = None  # stage, done, total


@dataclass(frozen=True)
class Prepared:
    """A run before its first step."""

    config: Config
    features: Features
    files: list[tuple[CapsuleFile, float]]
    evaluation: EvaluationData
    split_reason: str
    device: torch.device
    notes: list[str]

    def describe_data(self) -> dict[str, Any]:
        """`dataset.json`."""
        return {
            "train": [
                {
                    "path": str(file.path),
                    "weight": weight,
                    "rows": file.rows,
                    "content_hash": file.manifest.get("content_hash"),
                    "kind": file.manifest.get("kind"),
                    "task": file.task,
                    "class_names": file.manifest.get("class_names"),
                }
                for file, weight in self.files
            ],
            "eval": {"path": str(self.evaluation.file.path), "split": self.evaluation.split, "why": self.split_reason},
        }


@dataclass(frozen=True)
class RunResult:
    """Where a finished run lies and how good it is."""

    path: Path
    step: int
    evaluation: dict[str, Any]


@dataclass(frozen=True)
class DryRun:
    """Everything up to the first step."""

    prepared: Prepared
    parameters: int
    memory: MemoryEstimate
    steps_per_epoch: float


def prepare(config: Config, hooks: RunHooks) -> Prepared:
    """Build or open the data and settle what the run will do. Raises ConfigError or DataError."""
    data = config.data
    notes: list[str] = []
    if data.source is not None:
        entries = [(str(ensure_built(data, progress=hooks.on_build, log=hooks.log)), 1.0)]
    elif data.path is not None:
        paths = [data.path] if isinstance(data.path, str) else data.path
        entries = [(p.path, p.weight) if isinstance(p, WeightedPath) else (p, 1.0) for p in paths]
    else:
        raise ConfigError(
            "no data: neither data.path nor data.source is set",
            hint="data.path=FILE.h5 (see trm build-capsules), or data.source=digits to try it out",
        )
    files = [(open_capsules(path), weight) for path, weight in entries]
    for file, _ in files:
        file.require_trainable()
    for file, _ in files[1:]:
        if not np.array_equal(file.prices, files[0][0].prices):
            raise ConfigError(
                f"{file.path} and {files[0][0].path} have different prices", hint="build both with one list"
            )
    features = resolve_features(config, files[0][0])
    eval_file = open_capsules(data.eval_path) if data.eval_path else files[0][0]
    require_same_task(files[0][0], eval_file)
    split, reason = pick_split(eval_file, data.eval_split)
    device, why = pick_device(config.training.device)
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    notes.append(why)
    return Prepared(
        resolved(config, features), features, files, EvaluationData(eval_file, split), reason, device, notes
    )


def require_same_task(train: CapsuleFile, other: CapsuleFile) -> None:
    """Raises ConfigError when a model trained on `train` cannot answer `other`."""
    for name in ("num_capsules", "dim", "num_children", "checksum_dim", "label_rank", "num_classes"):
        ours, theirs = getattr(train, name), getattr(other, name)
        if ours != theirs:
            raise ConfigError(
                f"{other.path} has {name}={theirs}, but {train.path} has {ours}",
                hint="evaluate on a file built with the same settings",
            )


def dry_run(loaded: LoadedConfig, hooks: RunHooks) -> DryRun:
    """Everything up to the first step, without writing a run directory."""
    prepared = prepare(loaded.config, hooks)
    config, shape = prepared.config, prepared.features.shape
    model = TinyRecursiveModel(config, shape, with_cmi=prepared.features.cmi)
    rows = sum(file.rows["train"] for file, _ in prepared.files)
    return DryRun(
        prepared,
        sum(p.numel() for p in model.parameters()),
        estimate_memory(config, shape, model, prepared.features.dqn),
        rows / config.training.global_batch_size,
    )


def train_run(loaded: LoadedConfig, resume: str | None, hooks: RunHooks) -> RunResult:
    """Train, save, reload what was saved, and evaluate that.

    resume: None (a new run), 'auto' (go on if training.run_dir holds a checkpoint), or a run directory. Raises
    StoppedEarly or Interrupted when the state was saved before the last step, and any other TrmError with its
    reason; `status.json` says the same.
    """
    path, going_on = choose_run_path(loaded.config, resume)
    prepared = prepare(loaded.config, hooks)
    path.mkdir(parents=True, exist_ok=True)
    with run_dir.locked(path), ExitStack() as cleanup:
        hooks = replace(hooks, log=run_dir.log_into(path, hooks.log))
        config = prepared.config
        total = config.training.total_steps
        if going_on:
            changes = refuse_drift(load_config(path / run_dir.CONFIG).config, config, path)
            for change in changes:
                hooks.log(f"changed on resume: {change}")
        stop = cleanup.enter_context(stop_on_signals())
        about = {
            "shape": asdict(prepared.features.shape),
            "cmi": prepared.features.cmi,
            "data": prepared.describe_data(),
        }
        trainer = Trainer(config, prepared.features, prepared.files, prepared.device, path, about)
        if going_on:
            for note in trainer.resume():
                hooks.log(note)
        truncate_after(path / run_dir.METRICS, trainer.state.step)
        run_dir.write_atomic(path / run_dir.CONFIG, dump_config(config))
        run_dir.write_json(path / run_dir.DATASET, prepared.describe_data())
        run_dir.write_json(path / run_dir.ENVIRONMENT, environment(prepared.device, [*prepared.notes, *trainer.notes]))
        with reported(path, trainer, total):
            hooks.log(f"run directory: {path}")
            outcome = _train(trainer, prepared, path, stop, hooks)
            if outcome != "done":
                step = trainer.state.step
                kind = Interrupted if outcome == "interrupted" else StoppedEarly
                raise kind(
                    f"stopped at step {step} of {total}; the state is saved in {path}",
                    hint=f"go on with: trm train --resume {path}",
                )

            def poll(done: int, rows: int) -> None:
                if stop.received is not None:
                    kind = Interrupted if stop.received.name == "SIGINT" else StoppedEarly
                    raise kind(
                        f"trained, but stopped while evaluating; the state is saved in {path}",
                        hint=f"evaluate it with: trm eval {path}",
                    )

            evaluation = evaluate_run(path, EvalRequest(device=str(prepared.device)), hooks.log, poll)
            run_dir.write_json(path / run_dir.EVALUATION, evaluation)
            first = evaluation["scores"][0]
            hooks.log(
                f"step {trainer.state.step}: {first['policy']} accuracy {first['accuracy']:.4f}, "
                f"opened {first['opened']:.2f}"
            )
        return RunResult(path, trainer.state.step, evaluation)


def _train(trainer: Trainer, prepared: Prepared, path: Path, stop: StopFlag, hooks: RunHooks) -> str:
    loggers = open_loggers(path, prepared.config, hooks.log)
    sample = EvaluationData(prepared.evaluation.file, prepared.evaluation.split, _PERIODIC_ROWS)
    policy = "learned" if prepared.features.dqn else "act"

    def evaluate(model: TinyRecursiveModel) -> dict[str, float]:
        score = Evaluator(model, prepared.config, sample).table([policy])[0]
        return {
            "eval/accuracy": score.accuracy,
            "eval/exact_accuracy": score.exact_accuracy,
            "eval/loss": score.loss,
            "eval/opened": score.opened,
            "eval/spent": score.spent,
            "eval/steps": score.steps,
        }

    fresh = run_dir.keep_status(path, prepared.config.training.total_steps)

    def on_step(step: int, values: dict[str, float]) -> None:
        fresh(step)
        hooks.on_step(step, values)

    try:
        return trainer.run(loggers, stop, Hooks(evaluate, on_step, hooks.log))
    finally:
        loggers.close()
        trainer.state.stream.close()


def choose_run_path(config: Config, resume: str | None) -> tuple[Path, bool]:
    """The run directory, and whether it holds something to go on from. Raises UsageError."""
    asked = config.training.run_dir
    if resume not in (None, "auto"):
        return run_dir.require_run(Path(str(resume))), True
    if asked is None:
        if resume == "auto":
            raise UsageError("--resume auto needs training.run_dir", hint="training.run_dir=runs/NAME")
        return run_dir.new_run_path(config.name), False
    path = Path(asked)
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file, not a folder", hint="choose another training.run_dir")
    going_on = resume == "auto" and bool(list_checkpoints(path))
    # A run killed before its first checkpoint is begun again; a folder of somebody else's is left alone.
    begun = resume == "auto" and (path / run_dir.CONFIG).is_file()
    if not begun and path.is_dir() and any(entry.name not in (run_dir.LOCK, run_dir.LOG) for entry in path.iterdir()):
        raise UsageError(f"{path} is not empty", hint=f"go on with --resume {path}, or choose another training.run_dir")
    return path, going_on


@contextmanager
def reported(path: Path, trainer: Trainer, total: int) -> Iterator[None]:
    """Keep status.json true, whatever happens inside."""
    run_dir.write_status(path, "running", trainer.state.step, total)
    try:
        yield
    except TrmError as error:
        state = {ExitCode.STOPPED_EARLY: "stopped", ExitCode.INTERRUPTED: "interrupted"}.get(error.exit_code, "failed")
        run_dir.write_status(path, state, trainer.state.step, total, int(error.exit_code), error=error.message)
        raise
    except BaseException as error:
        run_dir.write_status(path, "failed", trainer.state.step, total, int(ExitCode.INTERNAL), error=repr(error))
        raise
    run_dir.write_status(path, "done", trainer.state.step, total, int(ExitCode.OK))
