from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_core.diagnose import read_metrics as reader
from trm_core.diagnose.read_metrics import read_metrics
from trm_core.diagnose.series import Metrics


def naive(data: bytes) -> dict[str, list[tuple[int, float]]]:
    """What a json loop over all lines finds."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in data.split(b"\n"):
        try:
            record = json.loads(line.decode())
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            continue
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float, type(None))):
                number = math.nan if value is None or not math.isfinite(value) else float(value)
                found.setdefault(name, []).append((record["step"], number))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in found.items()}


def points(metrics: Metrics) -> dict[str, list[tuple[int, float]]]:
    return {
        name: list(zip(metrics[name].steps.tolist(), metrics[name].values.tolist(), strict=True)) for name in metrics
    }


numbers = st.one_of(st.none(), st.floats(), st.integers(-(10**20), 10**20))
records = st.dictionaries(
    st.sampled_from(["train/loss", "train/accuracy", "eval/loss", "a"]), numbers | st.text() | st.lists(numbers)
)
lines = st.one_of(
    st.builds(lambda step, record: json.dumps({"step": step, **record}).encode(), st.integers(0, 10**9), records),
    st.binary(max_size=40),
    st.builds(lambda value: json.dumps(value).encode(), numbers | st.lists(numbers) | records),
    st.builds(lambda record, end: json.dumps({"step": 1, **record}).encode()[:end], records, st.integers(0, 60)),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(lines, max_size=12).map(b"\n".join))
def test_a_small_file_reads_as_a_json_loop_reads_it(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        path.write_bytes(data)
        read, expected = points(read_metrics(path)), naive(data)
        assert repr(sorted(read.items())) == repr(sorted(expected.items()))  # as texts, in which NaN equals NaN


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a file of two megabytes is a large one."""
    for name, value in {"WHOLE": 2**16, "HEAD": 2**12, "TAIL": 2**13, "MIDDLE": 200, "LONGEST": 2**14}.items():
        monkeypatch.setattr(reader, name, value)
    monkeypatch.setattr(reader, "_FAR", 2**11)


def write(path: Path, steps: int, eval_interval: int = 500, names: int = 5) -> Path:
    """A train line each step and an evaluation at multiples of the interval; each value is its step."""
    with path.open("w") as file:
        for step in range(1, steps + 1):
            file.write(json.dumps({"step": step, **{f"train/{index}": float(step) for index in range(names)}}) + "\n")
            if step % eval_interval == 0:
                file.write(json.dumps({"step": step, "eval/accuracy": float(step)}) + "\n")
    return path


def test_lines_are_found_by_their_offsets(tmp_path: Path) -> None:
    data = b"first\n\nthird is longer\nlast"
    (tmp_path / "lines").write_bytes(data)
    starts = [0, 6, 7, 23]
    with (tmp_path / "lines").open("rb", buffering=0) as file:
        lines = reader._Lines(file, len(data))
        for offset in range(len(data)):
            later = [start for start in starts if start >= offset]
            expected = (later[0], data[later[0] :].split(b"\n")[0]) if later else None
            assert lines.at(offset) == expected
            whole = [start for start, _ in lines.whole_ones(offset, 10_000)]
            assert whole == [start for start in starts if start > offset or offset == 0]


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("eval_interval", [500, None])
def test_a_large_file_is_thinned_and_keeps_its_evaluations(tmp_path: Path, eval_interval: int | None) -> None:
    path = write(tmp_path / "metrics.jsonl", 20_000)
    metrics = read_metrics(path, eval_interval or 500)
    series = metrics["train/0"]
    assert 150 < len(series) < 1000
    assert (series.steps == series.values).all()
    assert series.steps[0] == 1
    assert series.steps[-1] == 20_000
    assert np.diff(series.steps).max() < 250
    assert (np.diff(series.steps) > 0).all()
    assert metrics["eval/accuracy"].steps.tolist() == list(range(500, 20_001, 500))
    [note] = metrics.notes
    assert note.startswith(f"read {len(series) + 40:,} of about ")
    about = int(note.split()[4].replace(",", ""))
    assert abs(about / 20_040 - 1) < 0.1


@pytest.mark.usefixtures("small_limits")
def test_the_interval_of_evaluations_is_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MIDDLE", 600)
    metrics = read_metrics(write(tmp_path / "metrics.jsonl", 20_000, eval_interval=50))
    steps = metrics["eval/accuracy"].steps
    assert set(steps.tolist()) <= set(range(50, 20_001, 50))
    assert len(steps) > 150


@pytest.mark.usefixtures("small_limits")
def test_of_very_many_evaluations_some_are_chosen_at_even_distances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "EVALUATIONS", 40)
    monkeypatch.setattr(reader, "MIDDLE", 2)
    metrics = read_metrics(write(tmp_path / "metrics.jsonl", 20_000, eval_interval=20), 20)
    steps = metrics["eval/accuracy"].steps
    assert 40 <= len(steps) < 60
    assert np.diff(steps).max() < 600
    assert steps[-1] == 20_000


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("damage", ["garbage", "zeros", "long line", "not rising", "torn"])
def test_a_damaged_large_file_gives_what_is_left(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "metrics.jsonl", 10_000)
    data = bytearray(path.read_bytes())
    third = len(data) // 3
    if damage == "garbage":
        data[third : 2 * third] = np.random.default_rng(0).bytes(third)
    elif damage == "zeros":
        data[third : 2 * third] = bytes(third)
    elif damage == "long line":
        data[third : 2 * third] = b'{"step": 5, "a": "' + b"x" * third + b'"}\n'
    elif damage == "not rising":
        data = data[2 * third :] + b"\n" + data[: 2 * third]
    else:
        data = data[:-30]
    path.write_bytes(data)
    metrics = read_metrics(path, 500)
    series = metrics["train/0"]
    assert len(series) > 100
    assert (series.steps == series.values).all()
    assert (np.diff(series.steps) >= 0).all()
    assert len(metrics["eval/accuracy"]) >= 12
    assert any("no record of metrics" in note or "go back" in note for note in metrics.notes)


def test_where_the_steps_go_back_no_evaluation_is_looked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", 1000)
    with path.open("rb", buffering=0) as file:
        lines = reader._Lines(file, path.stat().st_size)
        assert not list(reader._evaluations(lines, [(400, 10**6), (600, 0)], 500))


def test_what_is_no_record_is_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1, "a": null, "b": 1e999, "c": [1], "d": "x"}\n'
        b"\n[1]\n12\n\0\0\0\n\xff\xfe\n"
        + b"[" * 100_000
        + b"\n"
        + b"9" * 5000
        + b'\n{"step": 2.5, "a": 1}\n{"step": 999999999999999999999, "a": 1}\n{"step": true, "a": 1}\n'
        + b'{"step": 2, "a": 1'
        + b"0" * 400
        + b'}\n{"step": 3, "a": 7}\n{"step": 4, "a"'
    )
    metrics = read_metrics(path)
    assert repr(points(metrics)) == "{'a': [(1, nan), (2, nan), (3, 7.0)], 'b': [(1, nan)]}"
    assert metrics.notes == ["skipped 10 lines that are no record of metrics"]


def test_a_missing_file_and_a_folder_are_no_series_and_a_note(tmp_path: Path) -> None:
    missing = read_metrics(tmp_path / "metrics.jsonl")
    assert not list(missing)
    assert missing.notes == [f"{tmp_path}/metrics.jsonl does not exist"]
    assert "is not a file" in read_metrics(tmp_path).notes[0]
    (tmp_path / "empty").touch()
    assert read_metrics(tmp_path / "empty").last_step == 0
