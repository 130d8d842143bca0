"""Every config of configs/ loads, says what it would do, and trains a little at a reduced size.

The data are made on the spot, as small as they go, of the kind that the config is for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import made_tasks
import pytest
import small_sources
import tiny

from trm_core.config import load_config

CONFIGS = {path.stem: path for path in sorted((tiny.ROOT / "configs").glob("*.yaml"))}
Make = Callable[[Path], list[str]]


def digits(folder: Path) -> list[str]:
    """The embedded ones; not the copies of each picture, which take the longest."""
    return ["data.build.augment_warps=0"]


def messages(folder: Path) -> list[str]:
    return [f"data.source={small_sources.write_messages(folder / 'sms.tsv', 150)}"]


def paragraphs(folder: Path) -> list[str]:
    text = folder / "valid.txt"
    text.write_text(paragraphs_of(folder))
    return [f"data.source={text}", "data.build.num_concepts=8"]


def grids(folder: Path) -> list[str]:
    return [f"data.source={small_sources.write_arc(folder / 'arc', tasks=20)}", "data.build.num_concepts=8"]


def mixed(folder: Path) -> list[str]:
    """The command of the config's comment, with narrower capsules and fewer concepts."""
    photos = small_sources.write_pictures(folder / "classes")
    text = folder / "notes.txt"
    text.write_text(paragraphs_of(folder))
    sources = [text, photos / "dark", small_sources.write_arc(folder / "arc", tasks=20)]
    sizes = ["--num-capsules", 12, "--num-children", 4, "--dim", 32, "data.build.num_concepts=8"]
    built("build-capsules", *sources, *sizes, "--out", folder / "multimodal.h5")
    return [f"data.path={folder / 'multimodal.h5'}", "arch.num_concepts=8"]


def capsules(folder: Path) -> list[str]:
    return [f"data.path={tiny.write_capsules(folder / 'tiny.h5', {'train': 96, 'validation': 40})}"]


def puzzles(*words: object) -> Make:
    def make(folder: Path) -> list[str]:
        built("build-puzzles", *words, "--out", folder / "puzzles")
        return [f"data.path={folder / 'puzzles'}"]

    return make


def tasks(*subsets: str, test: str) -> Make:
    def make(folder: Path) -> list[str]:
        files = [
            made_tasks.write_subset(folder, name, {f"{name}{i}": made_tasks.task(i)}) for i, name in enumerate(subsets)
        ]
        where = ["--augmentations", 2, "--test-subset", test, "--out", folder / "puzzles"]
        built("build-puzzles", "arc", *files, *where)
        return [f"data.path={folder / 'puzzles'}"]

    return make


def paragraphs_of(folder: Path) -> str:
    lines = small_sources.write_messages(folder / "labelled.tsv", 150).read_text().splitlines()
    return "\n\n".join(line.partition("\t")[2] for line in lines) + "\n"


def built(*words: object) -> None:
    done = tiny.invoke(*(str(word) for word in words))
    assert done.returncode == 0, done.stderr


SUDOKU = puzzles("sudoku", "--size", 4, "--count", 30, "--augmentations", 2)
DATA: dict[str, Make] = {
    "arc2_att": tasks("training2", "evaluation2", "concept", test="evaluation2"),
    "arc_att": tasks("training", "evaluation", "concept", test="evaluation"),
    "arc_capsules": grids,
    "maze_att": puzzles("maze", "--size", 7, "--count", 30, "--augmentations", 7),
    "multimodal": mixed,
    "quickstart": digits,
    "small": capsules,
    "sms": messages,
    "sudoku4_cpu": puzzles("sudoku", "--size", 4, "--count", 30, "--augmentations", 2, "--clues", 6),
    "sudoku6_cpu": puzzles("sudoku", "--size", 6, "--count", 20, "--augmentations", 2),
    "sudoku9_cpu": puzzles("sudoku", "--size", 9, "--count", 20, "--augmentations", 2),
    "sudoku_att": SUDOKU,
    "sudoku_hrm": SUDOKU,
    "sudoku_mlp": SUDOKU,
    "trm_paper": SUDOKU,
    "wikitext": paragraphs,
}
# What makes a step of any of them cheap; the parts that are on stay on.
REDUCED: dict[str, dict[str, Any]] = {
    "arch": {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "H_cycles": 2, "L_cycles": 1, "max_steps": 2},
    "training": {
        "global_batch_size": 8, "total_steps": 4, "lr_warmup_steps": 1, "eval_interval": 4, "checkpoint_interval": 4,
        "threads": 1, "device": "cpu", "precision": "float32",
    },
    "dqn": {"buffer_capacity": 200, "buffer_min_size": 8, "batch_size": 8},
}  # fmt: skip


def reduced(name: str) -> list[str]:
    words = [f"{section}.{key}={value}" for section, keys in REDUCED.items() for key, value in keys.items()]
    if name == "multimodal":
        words += ["memory.key_dim=32", "memory.value_dim=32", "memory.capacity=64"]
    if load_config(CONFIGS[name]).config.training.predictor_steps is not None:
        words.append("training.predictor_steps=3")
    if tokens(name):
        words.append("arch.puzzle_emb_ndim=32")
    return words


def tokens(name: str) -> bool:
    return DATA[name] not in (digits, messages, paragraphs, grids, mixed, capsules)


# The others take seconds each.
SOON = ("quickstart", "sms", "multimodal", "sudoku_mlp", "sudoku4_cpu", "trm_paper")


@pytest.fixture(scope="module")
def data_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], list[str]]]:
    """Overrides that name the made data of a config; what is made of them, and built of that, is made once."""
    made = cache(lambda make: make(tmp_path_factory.mktemp("data")))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield lambda name: made(DATA[name])


@pytest.fixture(params=[pytest.param(name, marks=[] if name in SOON else [pytest.mark.slow]) for name in CONFIGS])
def case(request: pytest.FixtureRequest, data_of: Callable[[str], list[str]]) -> tuple[str, list[str]]:
    """(name, overrides that name its made data)."""
    assert request.param in DATA, f"configs/{request.param}.yaml has no made data in this test"
    return request.param, data_of(request.param)


def test_a_config_of_the_project_trains_at_a_reduced_size(case: tuple[str, list[str]], tmp_path: Path) -> None:
    name, data = case
    where = f"training.run_dir={tmp_path / 'run'}"
    done = tiny.invoke("train", "--config", str(CONFIGS[name]), *data, *reduced(name), where)
    assert done.returncode == 0, done.stderr
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("done", 4)


@pytest.mark.slow
def test_a_config_of_the_project_dry_runs_at_its_own_size(case: tuple[str, list[str]]) -> None:
    name, data = case
    done = tiny.invoke("train", "--config", str(CONFIGS[name]), *data, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["shapes"]["parameters"] > 1000
    assert ("tokens S" in document["shapes"]) == tokens(name)
    if name == "multimodal":
        switches_on_what_it_says(document)


def switches_on_what_it_says(document: dict[str, Any]) -> None:
    """In the words of the user's document, which are other spellings."""
    assert 38e6 < document["shapes"]["parameters"] < 46e6
    on = {feature["feature"] for feature in document["features"] if feature["on"]}
    assert on >= {
        "enable_dqn", "enable_capsule_expansion", "q_head_num_actions: 3", "enable_memory", "enable_adaptive_hcycles",
        "enable_entropy_regularization", "reconstruction",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "epochs", "groups", "examples"),
    [
        ("sudoku_att", 50_000, 1000, 1.0),
        ("maze_att", 50_000, 1000, 1.0),
        # Examples of a puzzle on average, as the public builder counts them with 1,000 copies of each task.
        ("arc_att", 100_000, 960, 4.146),
        ("arc2_att", 100_000, 1280, 4.333),
    ],
)
def test_a_paper_config_trains_for_the_papers_epochs(name: str, epochs: int, groups: int, examples: float) -> None:
    training = load_config(CONFIGS[name], []).config.training
    assert training.total_steps == pytest.approx(epochs * groups * examples / training.global_batch_size, rel=1e-3)
