"""An ARC task is asked with the identifier that it was trained under, found by its name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_puzzles
import torch

from trm_core.data.puzzles.arc_tokens import SEQUENCE, VOCABULARY
from trm_core.data.puzzles.identifiers import identifiers_record
from trm_core.data.puzzles.meaning import guessed
from trm_core.data.puzzles.reader import open_puzzles
from trm_core.errors import DataError
from trm_core.inference.predictor import Predictor
from trm_core.inference.puzzle_source import puzzle_source, puzzle_text_source
from trm_core.inference.trained import Trained
from trm_core.serving.requests import parse

NAMES = ["<blank>", "aaaa", "aaaa|||t1|||0213456789", "bbbb"]
PAIR = {"input": [[1, 2]], "output": [[2, 1]]}
TASK = {"train": [PAIR], "test": [PAIR]}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """Random weights; the names are those of a folder that was trained on."""
    folder = tiny_puzzles.write_puzzles(tmp_path_factory.mktemp("named"), groups=6, identifiers=len(NAMES))
    (folder / "identifiers.json").write_text(json.dumps(NAMES))
    record = identifiers_record([open_puzzles(folder)])
    config = tiny.make_config(arch={**tiny_puzzles.ARCH, "max_steps": 1}, dqn={"enabled": False})
    shape = tiny.make_shape(
        num_capsules=SEQUENCE, dim=0, num_children=0, checksum_dim=0, num_classes=VOCABULARY, label_rank=2,
        vocab_size=VOCABULARY, num_puzzles=len(NAMES),
    )  # fmt: skip
    model = tiny.make_model(config, shape).eval()
    with torch.no_grad():
        model.get_buffer("embedding.puzzles.weights").normal_(std=3.0)
    meaning = guessed(VOCABULARY, SEQUENCE)
    prices = np.ones(SEQUENCE, np.float32)
    return Predictor(Trained(model, config, prices, None, False, Path("a"), puzzles=meaning, identifiers=record))


def asked_with(predictor: Predictor, path: Path, document: object) -> tuple[list[int], list[str]]:
    """The identifiers that the puzzles of a file are asked with, and what was said."""
    path.write_text(json.dumps(document))
    said: list[str] = []
    source = puzzle_source(path, predictor, None, said.append)
    return [sample.puzzle for sample in source.start(0) if sample is not None], said


def test_a_task_has_the_identifier_of_its_name(predictor: Predictor, tmp_path: Path) -> None:
    file = tmp_path / "tasks.json"
    assert asked_with(predictor, file, {"bbbb": TASK, "aaaa": TASK}) == ([3, 1], [])
    assert asked_with(predictor, tmp_path / "bbbb.json", TASK) == ([3], [])  # as ARC's files are called
    puzzles: list[object] = [{**PAIR, "puzzle": NAMES[2]}, {**PAIR, "puzzle": 3}]
    assert asked_with(predictor, file, puzzles) == ([2, 3], [])
    assert asked_with(predictor, file, {"aaaa": {"test": [{**PAIR, "puzzle": "bbbb"}]}}) == ([3], [])


def test_a_task_that_was_not_trained_on_is_a_guess_and_said_to_be_one(predictor: Predictor, tmp_path: Path) -> None:
    file = tmp_path / "tasks.json"
    found, (said,) = asked_with(predictor, file, dict.fromkeys(["aaaa", "cccc", "dddd", "eeee", "ffff"], TASK))
    assert found == [1, 0, 0, 0, 0]
    assert "not trained on cccc, dddd, eeee and 1 more" in said
    found, (said,) = asked_with(predictor, file, [PAIR, PAIR])
    assert found == [0, 0]
    assert "2 puzzles name no task" in said
    assert asked_with(predictor, file, {"<blank>": TASK})[0] == [0]


def test_a_name_that_was_given_has_to_be_known(predictor: Predictor) -> None:
    text = json.dumps([PAIR, {**PAIR, "puzzle": "cccc"}])
    with pytest.raises(DataError, match="stdin, puzzle 1: the model knows no puzzle called 'cccc'"):
        puzzle_text_source(text, "stdin", predictor)
    with pytest.raises(DataError, match="knows no puzzle called ''"):
        puzzle_text_source(json.dumps([{**PAIR, "puzzle": ""}]), "stdin", predictor)
    with pytest.raises(DataError, match="sample 0: the model knows no puzzle called"):
        predictor.ask([{**PAIR, "puzzle": "cccc"}])


def test_the_name_decides_the_answer(predictor: Predictor) -> None:
    by_name, by_number, other = predictor.ask([{**PAIR, "puzzle": name} for name in ("bbbb", 3, "aaaa")])
    assert by_name.halt_logit == pytest.approx(by_number.halt_logit, abs=1e-5)
    assert abs(by_name.halt_logit - other.halt_logit) > 1e-4


def test_a_server_takes_names_wherever_it_takes_numbers(predictor: Predictor) -> None:
    (asked,) = predictor.encoded([PAIR])
    samples = [{"tokens": asked.sketches.tolist(), "puzzle": name} for name in ("bbbb", NAMES[2], 3, None)]
    inputs = [{**PAIR, "puzzle": one["puzzle"]} for one in samples]
    for body in ({"samples": samples}, {"inputs": inputs}):
        found = parse(json.dumps(body).encode(), predictor, 10).samples
        assert [sample.puzzle for sample in found] == [3, 2, 3, 0]
