"""Every command in README.md is run here as written, on small generated data, or known to be run elsewhere."""

from __future__ import annotations

import csv
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import small_sources
import tiny
import tiny_puzzles
import torch
import yaml
from forked_shell import trm_program
from public_formulas import Sizes, weights
from written_commands import blocks, prompts, require_parses, trm_calls

from trm_core.config import load_config

README = (tiny.ROOT / "README.md").read_text(encoding="utf-8")
SHORT = (
    "training.total_steps=6 training.lr_warmup_steps=1 training.global_batch_size=8 training.eval_interval=6 "
    "training.checkpoint_interval=6 training.threads=1 training.device=cpu training.precision=float32"
)
SMALL = f"{SHORT} training.predictor_steps=4 arch.hidden_size=32 dqn.buffer_min_size=8 dqn.batch_size=8"
PUZZLE = f"{SHORT} arch.hidden_size=32 arch.num_heads=4 arch.puzzle_emb_ndim=32 arch.H_cycles=1 arch.L_cycles=1"


@dataclass(frozen=True)
class Here:
    """Run by this test with `small` appended; it must end with one of `codes` and write `file`."""

    small: str = ""
    codes: tuple[int, ...] = (0,)
    file: str = ""


@dataclass(frozen=True)
class Elsewhere:
    """Run by another file of the repository, which contains these words."""

    file: str
    words: str


RUNS: dict[str, Here | Elsewhere] = {
    "pip install . && trm train --config configs/quickstart.yaml": Elsewhere(".ci/run", 'eval "$(readme_command 0)"'),
    "pip install -e '.[dev]' && pytest": Elsewhere(".ci/run", 'eval "$(readme_command 1)"'),
    "trm --version": Here(),
    "trm --install-completion": Elsewhere("tests/cli/test_pleasantness.py", 'bash("trm --install-completion"'),
    "trm build-capsules reviews.csv --text review --label stars --out reviews.h5": Here(file="reviews.h5"),
    "trm build-capsules photos/ --num-capsules 16 --num-children 4 --out photos.h5": Here(file="photos.h5"),
    "trm build-capsules patients.csv --label outcome --out patients.h5": Here(file="patients.h5"),
    "trm build-capsules embeddings.npz --out embeddings.h5": Here(file="embeddings.h5"),
    "trm inspect-dataset reviews.h5": Here(),
    "trm train --config configs/small.yaml data.path=reviews.h5": Here(SMALL),
    "trm eval --plot pareto.png": Here(file="pareto.png"),
    "trm diagnose": Here(codes=(0, 1)),  # a run of six steps is rarely healthy
    'echo "I laughed all evening" | trm predict -': Here(),
    "trm predict more.csv --column review --out answers.jsonl": Here(file="answers.jsonl"),
    "trm build-capsules more.csv --text review --label stars --encoders-of reviews.h5 --out more.h5": Here(
        file="more.h5"
    ),
    "trm eval --data more.h5": Here(),
    "trm export --format onnx --out exported/reviews": Here(file="exported/reviews/step.onnx"),
    "trm build-puzzles sudoku --size 4 --count 3000 --augmentations 20 --clues 6 --out data/sudoku4": Here(
        "--count 40 --augmentations 2", file="data/sudoku4/train/dataset.json"
    ),
    "trm train --config configs/sudoku4_cpu.yaml": Here(PUZZLE),
    "echo 1..4..3..4..3..2 | trm predict - --show": Here(),
    "trm convert step_50000 --data data/sudoku-extreme --out runs/theirs": Here(file="runs/theirs/config.yaml"),
    "trm eval runs/theirs": Here(),
    "trm train --config configs/sudoku_mlp.yaml data.path=data/sudoku-extreme": Here(PUZZLE),
    "trm train --config configs/small.yaml data.path=reviews.h5 --nproc 2": Here(SMALL),
    "TRM_REQUEUE=1 sbatch configs/slurm/several_nodes.sbatch configs/small.yaml runs/a data.path=reviews.h5": Elsewhere(
        "tests/cli/test_slurm.py", 'cluster.submit("several_nodes.sbatch", config, run, LONG, tasks=2, TRM_REQUEUE="1"'
    ),
}


def written() -> list[str]:
    return [line for body in blocks(README, "bash") for line in body.strip().splitlines()] + prompts(README)


def test_this_test_knows_how_to_run_every_command() -> None:
    assert sorted(written()) == sorted(RUNS), "a command of README.md changed: say in RUNS how it is tried"
    assert len(blocks(README, "bash")) == 2, ".ci/run executes the first two ```bash blocks; write ```console elsewhere"
    for how in RUNS.values():
        if isinstance(how, Elsewhere):
            assert how.words in (tiny.ROOT / how.file).read_text()


@pytest.mark.parametrize("command", written())
def test_its_options_and_keys_exist(command: str) -> None:
    """The fast half, which runs nothing."""
    for words in trm_calls(command):
        require_parses(words)
        if "--config" in words:
            overrides = [word for word in words[1:] if "=" in word]
            load_config(tiny.ROOT / words[words.index("--config") + 1], overrides)


def test_a_missing_option_or_key_would_be_noticed() -> None:
    for wrong in (
        "trm eval --polcy all",
        "trm train --config configs/small.yaml data.pth=x",
        "trm tarin",
        "trm --vers",
    ):
        with pytest.raises(Exception, match=r"(?i)no such|not a known|has no"):
            test_its_options_and_keys_exist(wrong)


def reviews(path: Path, seed: int) -> None:
    lines = small_sources.write_messages(path.with_suffix(".tsv"), 120, seed).read_text().splitlines()
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("stars", "review"), *(line.split("\t") for line in lines)])


def public_checkpoint(path: Path) -> None:
    sizes = Sizes(tokens=tiny_puzzles.SIZE, vocabulary=tiny_puzzles.VOCAB, puzzles=1, mlp=True, pos_encodings="none")
    torch.save({f"model.inner.{name}": torch.from_numpy(value).float() for name, value in weights(sizes).items()}, path)
    arch = {"H_cycles": 2, "L_cycles": 3, "num_heads": 4, "expansion": 2.0, "halt_max_steps": 3, "puzzle_emb_len": 3}
    (path.parent / "all_config.yaml").write_text(yaml.safe_dump({"arch": arch}))


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], subprocess.CompletedProcess[str]]]:
    """A shell with `trm` on its path, in a folder with configs/ and everything that the README's commands read."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(tiny.ROOT / "configs")
    (folder / "data").mkdir()
    reviews(folder / "reviews.csv", seed=0)
    reviews(folder / "more.csv", seed=1)
    small_sources.write_pictures(folder / "photos")
    table = small_sources.random_table(folder / "patients.csv")
    table.write_text(table.read_text().replace("label", "outcome", 1))
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    np.savez(
        folder / "embeddings.npz",
        children=random.normal(size=(60, 4, 2, 8)) + labels[:, None, None, None],
        labels=labels,
    )
    tiny_puzzles.write_puzzles(folder / "data/sudoku-extreme")
    public_checkpoint(folder / "step_50000")
    (folder / "bin").mkdir()
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    environment = {**tiny.environment(folder), "PATH": path, "HOME": str(folder)}

    def run(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    with trm_program(folder / "bin" / "trm"):
        yield run


@pytest.mark.slow(minutes=2)
def test_the_commands_run_one_after_the_other(shell: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    """In the README's order, because each command reads what earlier ones wrote."""
    for command in written():
        how = RUNS[command]
        if isinstance(how, Elsewhere):
            continue
        done = shell(f"{command} {how.small}")
        assert done.returncode in how.codes, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout
        assert shell(f"test -e ./{how.file}").returncode == 0, f"{command} left no {how.file}"
