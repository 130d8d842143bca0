"""One whole training run: config -> data -> run directory -> trainer -> evaluation of what is on disk.

The only module that joins training with evaluation. Several processes may do it together: all of them train and
evaluate, and rank 0 alone writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trm_core.config import LoadedConfig, dump_config
from trm_core.diagnose.watch import Watch
from trm_core.distributed.collectives import from_first_rank, of_first_rank, on_every_rank
from trm_core.distributed.place import Place, find_place
from trm_core.distributed.processes import joined, peers_watched
from trm_core.errors import ExitCode, Interrupted, ResourceError, StoppedEarly, TrmError
from trm_core.evaluation.evaluate import EvalRequest, evaluate_run
from trm_core.evaluation.periodic import PERIODIC_ROWS
from trm_core.evaluation.report import EvaluationData, Evaluator
from trm_core.model.trm import TinyRecursiveModel
from trm_core.optim.freeze import require_more_than_exceptions
from trm_core.prepare import Prepared, RunHooks, changes_on_resume, prepare, weights_left_over
from trm_core.training import run_dir
from trm_core.training.deadline import deadline
from trm_core.training.environment import record_start
from trm_core.training.loggers import AllLoggers, open_loggers, truncate_after
from trm_core.training.out_of_memory import memory_explained
from trm_core.training.run_path import choose_run_path
from trm_core.training.stopping import StopFlag
from trm_core.training.trainer import Hooks, Trainer

_NOT_MET = "stopped while waiting for the other processes"


@dataclass(frozen=True)
class RunResult:
    """Where a finished run lies and how good it is."""

    path: Path
    step: int
    evaluation: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run under way, as one of its processes sees it."""

    path: Path
    prepared: Prepared
    trainer: Trainer
    stop: StopFlag
    hooks: RunHooks
    place: Place

    @property
    def total_steps(self) -> int:
        return self.prepared.config.training.total_steps


def train_run(loaded: LoadedConfig, resume: str | None, hooks: RunHooks, stop: StopFlag) -> RunResult | None:
    """Train, save, reload what was saved, and evaluate that. None on all ranks but the first.

    resume: None (a new run), 'auto' (resume if training.run_dir holds a checkpoint), or a run directory. stop: may ask
    for an early end, as returned by `stop_on_signals`. Raises StoppedEarly or Interrupted if the state was saved before
    the last step, and any other TrmError with its reason; `status.json` says the same.
    """
    stop.check("stopped before training began", hint="run the same command again")
    place = find_place()
    with ExitStack() as cleanup:

        def poll() -> None:
            stop.check(_NOT_MET, hint="run the same command again")

        cleanup.enter_context(joined(place, poll, hooks.log))
        if place.rank:
            hooks = RunHooks()
        path, going_on = agree_on_path(loaded, resume)
        stop.deadline, why = deadline(loaded.config.training)
        if stop.deadline is not None:
            hooks.log(why)
        prepared = on_every_rank(lambda: prepare(loaded.config, _stoppable(hooks, stop), place))

        def hold() -> None:
            if place.rank == 0:
                cleanup.enter_context(run_dir.locked(path))

        on_every_rank(hold)
        if place.rank == 0:
            hooks = replace(hooks, log=run_dir.log_into(path, hooks.log))
        run = begin(path, prepared, going_on, stop, hooks, place)
        for note in weights_left_over(loaded, prepared):
            hooks.log(note)
        with reported(run):
            with peers_watched(place):
                train(run)
                evaluation = evaluate(run)
            return None if place.rank else RunResult(path, run.trainer.state.step, evaluation)


def agree_on_path(loaded: LoadedConfig, resume: str | None) -> tuple[Path, bool]:
    """The run directory, and whether it holds something to resume, as rank 0 finds them."""

    def choose() -> tuple[str, bool]:
        path, going_on = choose_run_path(loaded.config, resume)
        return str(path), going_on

    path, going_on = from_first_rank(choose)
    return Path(path), going_on


def _stoppable(hooks: RunHooks, stop: StopFlag) -> RunHooks:
    """`hooks` that end the building of data once a stop is requested."""

    def on_build(stage: str, done: int, total: int) -> None:
        stop.check("stopped while building the data", hint="run the same command again")
        if hooks.on_build is not None:
            hooks.on_build(stage, done, total)

    return replace(hooks, on_build=on_build)


def begin(path: Path, prepared: Prepared, going_on: bool, stop: StopFlag, hooks: RunHooks, place: Place) -> Run:
    """Build the trainer at its first step, and fill the run directory with what describes the run."""
    config = prepared.config
    if going_on:
        for change in changes_on_resume(path, config):
            hooks.log(change)
    else:
        require_more_than_exceptions(config.training.freeze)
    about = {
        "shape": asdict(prepared.features.shape),
        "cmi": prepared.features.cmi,
        "data": prepared.describe_data(),
    }
    # A resumed run has no use for its initial weights, which may be gone by now.
    begun = config.training.model_copy(update={"init_from": None})
    trained_as = config.model_copy(update={"training": begun}) if going_on else config
    with memory_explained(config, prepared.features, prepared.device):
        trainer = Trainer(trained_as, prepared.features, prepared.files, prepared.device, path, about)
    if going_on:
        for note in trainer.resume():
            hooks.log(note)
    if place.rank == 0:
        truncate_after(path / run_dir.METRICS, trainer.state.step)
        run_dir.write_atomic(path / run_dir.CONFIG, dump_config(config))
        run_dir.write_json(path / run_dir.DATASET, prepared.describe_data())
        notes = [*prepared.notes, *trainer.notes]
        record_start(path, prepared.device, config.training.seed, trainer.state.step, notes)
    for note in [f"run directory: {path}", *prepared.notes, *trainer.notes]:
        hooks.log(note)
    return Run(path, prepared, trainer, stop, hooks, place)


def train(run: Run) -> None:
    """Train to the end. If stopped before, raises StoppedEarly or Interrupted once the state is saved."""
    path, prepared, trainer, hooks = run.path, run.prepared, run.trainer, run.hooks
    loggers = open_loggers(path, prepared.config, hooks.log) if run.place.rank == 0 else AllLoggers([])
    if prepared.config.training.watch and run.place.rank == 0:
        files = [(file.path, weight) for file, weight in prepared.files]
        loggers.loggers.append(Watch(prepared.config, files, hooks.log, run.place.world_size))
    sample = EvaluationData(prepared.evaluation.file, prepared.evaluation.split, PERIODIC_ROWS)
    policy = "learned" if prepared.features.dqn else "act"
    compares = from_first_rank(sample.labelled)
    if not compares:
        hooks.log(f"{sample.file.path}: no {sample.split} row has a label, so nothing is evaluated during training")

    def poll(rows: int) -> None:
        run.stop.check("stopped while evaluating", hint="training sees the reason too, and saves")

    def evaluate_now(model: TinyRecursiveModel) -> dict[str, float]:
        if not compares:
            return {}
        try:
            score = Evaluator(model, prepared.config, sample, poll).table([policy])[0]
        except TrmError as error:
            if error.exit_code not in (ExitCode.STOPPED_EARLY, ExitCode.INTERRUPTED):
                raise
            return {}
        return {
            "eval/accuracy": score.accuracy,
            "eval/exact_accuracy": score.exact_accuracy,
            "eval/loss": score.loss,
            "eval/opened": score.opened,
            "eval/spent": score.spent,
            "eval/steps": score.steps,
            "eval/answer_top_share": score.answers.top_answer,
            "eval/label_top_share": score.answers.top_label,
            "eval/labels_left_out": score.answers.left_out,
            "eval/answers_in_excess": score.answers.in_excess,
        }

    fresh = run_dir.keep_status(path, run.total_steps) if run.place.rank == 0 else None

    def on_step(step: int, values: dict[str, float]) -> None:
        if fresh is not None:
            fresh(step)
        hooks.on_step(step, values)

    try:
        with memory_explained(prepared.config, prepared.features, prepared.device, trainer.state):
            outcome = trainer.run(loggers, run.stop, Hooks(evaluate_now, on_step, hooks.log))
    finally:
        loggers.close()
        trainer.state.stream.close()
    if outcome != "done":
        kind = Interrupted if outcome == "interrupted" else StoppedEarly
        raise kind(
            f"stopped at step {trainer.state.step} of {run.total_steps}; the state is saved in {path}",
            hint=f"continue with: trm train --resume {path}",
        )


def evaluate(run: Run) -> dict[str, Any]:
    """Evaluate what is on disk; rank 0 writes `evaluation.json`, the others only help."""

    def poll(done: int, rows: int) -> None:
        run.stop.check(
            f"trained, but stopped while evaluating; the state is saved in {run.path}",
            hint=f"evaluate it with: trm eval {run.path}",
        )

    evaluation = evaluate_run(run.path, EvalRequest(device=str(run.prepared.device)), run.hooks.log, poll)
    if run.place.rank == 0:
        run_dir.write_json(run.path / run_dir.EVALUATION, evaluation)
    if not evaluation["scores"]:
        return evaluation
    first = evaluation["scores"][0]
    run.hooks.log(
        f"step {run.trainer.state.step}: {first['policy']} accuracy {first['accuracy']:.4f}, "
        + (f"exact {first['exact_accuracy']:.4f}" if evaluation["puzzles"] else f"opened {first['opened']:.2f}")
    )
    return evaluation


@contextmanager
def reported(run: Run) -> Iterator[None]:
    """Keep status.json true, whatever happens inside. Only rank 0 writes it; another rank's error goes to log.txt."""

    def write(state: str, code: int | None, **more: str) -> None:
        if run.place.rank == 0:
            run_dir.write_status(run.path, state, run.trainer.state.step, run.total_steps, code, **more)
        elif state == "failed":
            run_dir.log_into(run.path, lambda message: None)(f"rank {run.place.rank}: {more['error']}")

    def write_end(state: str, code: int, error: str) -> None:
        with suppress(ResourceError):  # that the disk refuses this is not what ended the run
            write(state, code, error=error)

    write("running", None)
    try:
        yield
    except TrmError as error:
        state = {ExitCode.STOPPED_EARLY: "stopped", ExitCode.INTERRUPTED: "interrupted"}.get(error.exit_code, "failed")
        write_end(state, int(error.exit_code), error.message)
        if state != "failed":
            # All ranks stop and exit together: srun may kill the others once the first exits with a code.
            of_first_rank(None)
        raise
    except BaseException as error:
        write_end("failed", int(ExitCode.INTERNAL), repr(error))
        raise
    write("done", int(ExitCode.OK))
