"""Voting over copies: what counts as a vote, how grids are ranked, and that processes may share the counting."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trm_core.data.build.arc import GridPair
from trm_core.data.puzzles.arc_copies import Copy, inverse_of
from trm_core.data.puzzles.arc_held_out import HeldOutTask, held_out_document, read_held_out
from trm_core.data.puzzles.arc_tokens import crops, lay
from trm_core.errors import DataError
from trm_core.evaluation.arc_voting import Votes

Row = tuple[str, np.ndarray, np.ndarray, float]


def grid(seed: int) -> np.ndarray:
    random = np.random.default_rng([3, seed])
    return random.integers(10, size=random.integers(1, 31, size=2)).astype(np.uint8)


def row(task: str, question: np.ndarray, answer: np.ndarray, halt: float, copy_seed: int) -> Row:
    """A prediction of `answer` to `question` as a copy of the task shows it (copy 0: the task itself)."""
    if copy_seed == 0:
        return task, lay(question).reshape(-1), lay(answer).reshape(-1), halt
    random = np.random.default_rng(copy_seed)
    copy = Copy(int(random.integers(8)), np.array([0, *(1 + random.permutation(9))], dtype=np.uint8))
    return copy.name(task), lay(copy.apply(question)).reshape(-1), lay(copy.apply(answer)).reshape(-1), halt


def counted(rows: list[Row]) -> Votes:
    votes = Votes()
    if rows:
        names, inputs, predictions, halt = zip(*rows, strict=True)
        votes.add(names, np.stack(inputs), np.stack(predictions), np.array(halt))
    return votes


TASKS = [
    HeldOutTask("one", [GridPair(grid(0), grid(1)), GridPair(grid(2), grid(3))]),
    HeldOutTask("two", [GridPair(grid(4), grid(5))]),
    HeldOutTask("unsolved", [GridPair(grid(6), None)]),
]

ROWS = st.lists(
    st.builds(
        lambda where, answer, halt, copy: row(
            TASKS[where[0]].name, TASKS[where[0]].test[where[1]].input, grid(answer), halt, copy
        ),
        st.sampled_from([(0, 0), (0, 1), (1, 0), (2, 0)]),
        st.integers(0, 5),
        st.floats(0, 1),
        st.integers(0, 50),
    ),
    max_size=30,
)


def test_votes_come_before_confidence_and_confidence_before_chance() -> None:
    question, right, wrong, third = (grid(number) for number in (0, 1, 7, 8))
    votes = counted(
        [
            row("one", question, wrong, 0.99, 0),
            row("one", question, right, 0.2, 1),
            row("one", question, right, 0.3, 2),
            row("one", question, third, 0.995, 3),
        ]
    )
    result = votes.result(TASKS[:1], (1, 2, 3))
    first = result.submission["one"][0]
    assert first == {"attempt_1": right.tolist(), "attempt_2": third.tolist()}
    assert result.pass_at == {1: 0.5, 2: 0.5, 3: 0.5}  # the task's second input was never answered
    assert (result.votes, result.unanswered, result.tasks) == (4, 1, 1)


def test_every_task_and_input_is_in_the_submission() -> None:
    result = counted([row("two", grid(4), grid(5), 0.5, 9)]).result(TASKS)
    nothing = {"attempt_1": [[0]], "attempt_2": [[0]]}
    assert result.submission["one"] == [nothing, nothing]
    assert result.submission["two"] == [dict.fromkeys(("attempt_1", "attempt_2"), grid(5).tolist())]
    assert result.submission["unsolved"] == [nothing]
    assert result.pass_at is not None
    assert set(result.pass_at.values()) == {0.5}
    assert json.loads(json.dumps(result.submission)) == result.submission


def test_what_holds_no_grid_is_no_vote() -> None:
    empty = np.zeros(900, dtype=np.int32)
    beyond = np.full(900, 12, dtype=np.int32)
    question = lay(grid(4)).reshape(-1)
    votes = Votes()
    votes.add(
        ["two", "two", "<blank>", "two", "stranger"],
        np.stack([question, question, empty, empty, question]),
        np.stack([empty, beyond, question, question, question]),
        np.array([0.5, 0.5, 0.5, np.nan, np.inf]),
    )
    result = votes.result(TASKS)
    assert (result.illegal, result.strangers, result.votes) == (2, 2, 2)
    assert result.unanswered == 4
    assert result.pass_at is not None
    assert not any(result.pass_at.values())


def test_tasks_without_solutions_are_not_scored() -> None:
    result = counted([row("unsolved", grid(6), grid(1), 0.5, 3)]).result(TASKS[2:])
    assert result.pass_at is None
    assert result.submission["unsolved"][0]["attempt_1"] == grid(1).tolist()


@settings(deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_does_not_matter(rows: list[Row], random: object) -> None:
    whole = counted(rows).result(TASKS)
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert counted(shuffled).result(TASKS) == whole


@settings(deadline=None)
@given(ROWS)
def test_as_a_plain_count_has_it(rows: list[Row]) -> None:
    result = counted(rows).result(TASKS, (1, 2, 3))
    shares = dict.fromkeys((1, 2, 3), 0.0)
    for task in TASKS[:2]:
        for pair in task.test:
            found: dict[str, list[float]] = {}
            for name, inputs, predicted, halt in rows:
                own, undo = inverse_of(name)
                (question,), (answer,) = crops(inputs[None]), crops(predicted[None])
                assert question is not None
                assert answer is not None
                if own == task.name and np.array_equal(undo(question), pair.input):
                    found.setdefault(str(undo(answer).tolist()), []).append(halt)
            rank = {answer: (len(halts), round(float(np.mean(halts)), 9)) for answer, halts in found.items()}
            assume(len(set(rank.values())) == len(rank))  # a tie may be broken either way
            order = sorted(rank, key=lambda answer: rank[answer], reverse=True)
            assert pair.output is not None
            for k in shares:
                shares[k] += (str(pair.output.tolist()) in order[:k]) / len(task.test) / 2
    assert result.pass_at == pytest.approx(shares)


def test_memory_stays_small() -> None:
    votes = Votes()
    background = np.zeros((30, 30), dtype=np.uint8)
    for number in range(400):
        background[number % 30, (7 * number) % 30] = 1 + number % 9
        votes.add(["one"], lay(grid(0)).reshape(1, -1), lay(background).reshape(1, -1), np.array([0.5]))
    assert sum(map(sys.getsizeof, votes._grids.values())) < 400 * 400


def test_held_out_tasks_are_read_back(tmp_path: Path) -> None:
    document = {task.name: held_out_document([GridPair(grid(9), grid(8))], task.test) for task in TASKS}
    assert document["unsolved"]["test"][0]["output"] == [[0]]
    (tmp_path / "test_puzzles.json").write_text(json.dumps(document))
    for read, written in zip(read_held_out(tmp_path), TASKS, strict=True):
        assert read.name == written.name
        for one, other in zip(read.test, written.test, strict=True):
            assert np.array_equal(one.input, other.input)
            assert (one.output is None) == (other.output is None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected ARC tasks"),
        ('{"t": {"train": [], "test": [{"input": [[0]], "output": [[77]]}]}}', "task t, test pair 0, output: holds 77"),
        ('{"t": {"train": [], "test": {"input": 3}}}', "task t: test is not a list"),
        ('{"t": {"train": [], "test": [3]}}', "task t, test pair 0: has no input"),
        ('{"t": 3}', "task t"),
        ("{", "is not JSON"),
    ],
)
def test_a_damaged_list_of_tasks_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "test_puzzles.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_held_out(tmp_path)


def test_a_name_that_cannot_be_undone_is_refused() -> None:
    with pytest.raises(DataError, match="not the name of a copy"):
        counted([("one|||t9|||0123456789", lay(grid(0)).reshape(-1), lay(grid(1)).reshape(-1), 0.5)])
