from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from trm_core.diagnose.foreign_metrics import our_name, read_foreign
from trm_core.errors import DataError, UsageError
from trm_core.training.third_party import TensorBoard


def write_events(folder: Path, lines: list[tuple[int, dict[str, float]]]) -> Path:
    """With the writer of a run, which is tensorboard's own."""
    logger = TensorBoard(folder)
    logger.open()
    for step, values in lines:
        logger.log(step, values)
    logger.close()
    return sorted(folder.iterdir())[-1]


WANDB_RUN = """
import sys, wandb
run = wandb.init(mode="offline", project="p", dir=sys.argv[1], settings=wandb.Settings(silent=True, disable_git=True))
for index in range(400):
    run.log({"train/lm_loss": 1 / (index + 1), "Accuracy": index / 400, "train": {"epoch": index}, "mine": 1.0,
             "text": "x", "train/grad_norm": float("nan") if index == 7 else 2.0}, step=10 * index)
run.finish()
"""


@pytest.fixture(scope="module")
def wandb_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an offline run. Only to be read."""
    folder = tmp_path_factory.mktemp("wandb")
    done = subprocess.run([sys.executable, "-c", WANDB_RUN, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_tensorboard_comes_back_by_our_names(tmp_path: Path) -> None:
    lines = [(step, {"train/loss": 1.0 / step, "Accuracy/val": step / 64, "mine": 3.0}) for step in range(1, 50)]
    lines[4][1]["train/loss"] = math.nan
    file = write_events(tmp_path / "logs" / "run", lines)
    for path in (file, tmp_path, tmp_path / "logs" / "run"):
        metrics = read_foreign(path)
        assert sorted(metrics) == ["eval/accuracy", "train/loss"]
        assert metrics["eval/accuracy"].steps.tolist() == list(range(1, 50))
        assert metrics["eval/accuracy"].values.tolist() == [step / 64 for step in range(1, 50)]
        assert math.isnan(metrics["train/loss"].values[4])
        assert len(metrics["train/loss"].finite()) == 48
        assert metrics.notes == ["1 of 3 names are not ours and were left out: mine"]


def test_what_was_logged_before_a_rewind_is_void(tmp_path: Path) -> None:
    write_events(tmp_path, [(step, {"train/loss": 1.0}) for step in range(10)])
    write_events(tmp_path, [(step, {"train/loss": 2.0}) for step in range(6, 12)])
    metrics = read_foreign(tmp_path)
    assert metrics["train/loss"].steps.tolist() == list(range(12))
    assert metrics["train/loss"].values.tolist() == [1.0] * 6 + [2.0] * 6
    assert metrics.notes == ["4 points were logged again after the run had gone back, and do not count"]


def test_of_several_folders_the_newest_is_read(tmp_path: Path) -> None:
    old = write_events(tmp_path / "b", [(1, {"train/loss": 1.0})])
    os.utime(old, (1, 1))
    write_events(tmp_path / "a", [(1, {"train/loss": 2.0})])
    metrics = read_foreign(tmp_path)
    assert metrics["train/loss"].last == 2.0
    assert metrics.notes == [f"read {tmp_path / 'a'}, the newest; 1 more folder left out"]


def test_numbers_written_as_tensors_are_read(tmp_path: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    with (tmp_path / "events.out.tfevents.1").open("wb") as file:
        writer = RecordWriter(file)
        for step in (1, 2, 3):
            event = Event(step=step)
            tensor = event.summary.value.add(tag="loss").tensor
            tensor.dtype = 1
            if step == 1:
                tensor.float_val.append(0.5)
            elif step == 2:
                tensor.tensor_content = struct.pack("<f", 0.25)
            else:  # a histogram
                tensor.tensor_shape.dim.add(size=2)
                tensor.float_val.extend([1.0, 2.0])
            writer.write(event.SerializeToString())
        writer.flush()
    assert read_foreign(tmp_path)["train/loss"].values.tolist() == [0.5, 0.25]


@pytest.mark.parametrize("damage", ["torn", "frame", "record", "garbage behind"])
def test_a_damaged_event_file_gives_what_stands_before(tmp_path: Path, damage: str) -> None:
    file = write_events(tmp_path, [(step, {"train/loss": float(step)}) for step in range(100)])
    data = bytearray(file.read_bytes())
    size = (len(data) - 40) // 100
    middle = len(data) - 50 * size
    if damage == "torn":
        data = data[:-5]
    elif damage == "frame":
        data[middle : middle + size] = b"\xff" * size
    elif damage == "record":
        data[-20:-4] = b"\xff" * 16
    else:
        data += b"garbage" * 10
    file.write_bytes(data)
    metrics = read_foreign(tmp_path)
    series = metrics["train/loss"]
    assert 40 < len(series) <= 100
    assert (series.steps == series.values).all()
    assert metrics.notes == [f"{file} is damaged or torn; what stands before that was read"]


def test_wandb_comes_back_by_our_names(wandb_run: Path) -> None:
    [file] = wandb_run.rglob("*.wandb")
    for path in (wandb_run, file, file.parent):
        metrics = read_foreign(path)
        assert sorted(metrics) == ["train/accuracy", "train/epoch", "train/grad_norm", "train/lm_loss"]
        assert metrics["train/lm_loss"].steps.tolist() == list(range(0, 4000, 10))
        assert metrics["train/lm_loss"].values.tolist() == [1 / (index + 1) for index in range(400)]
        assert metrics["train/epoch"].last == 399
        assert math.isnan(metrics["train/grad_norm"].values[7])
        assert metrics.notes == ["1 of 5 names are not ours and were left out: mine"]


def test_a_damaged_wandb_file_goes_on_with_the_next_block(wandb_run: Path, tmp_path: Path) -> None:
    [file] = wandb_run.rglob("*.wandb")
    data = bytearray(file.read_bytes())
    assert len(data) > 4 * 32768, "the run is too short for the test"
    data[40_000:40_100] = b"\xff" * 100
    copy = tmp_path / "run-x.wandb"
    copy.write_bytes(data[:-9])
    metrics = read_foreign(copy)
    series = metrics["train/lm_loss"]
    assert 200 < len(series) < 400
    assert series.steps[0] == 0
    assert (series.values == 1 / (series.steps / 10 + 1)).all()
    assert metrics.notes[0] == f"{copy} is damaged or torn in 2 places"


def framed(body: bytes) -> bytes:
    return struct.pack("<IHB", zlib.crc32(body, zlib.crc32(b"\1")), len(body), 1) + body


def test_a_block_that_ends_in_padding_is_whole(tmp_path: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    bodies = []
    for step in range(2):
        record = Record()
        record.history.item.add(key="loss", value_json=str(step))
        record.history.step.num = step
        bodies.append(record.SerializeToString())
    filler = Record(uuid="x" * (32768 - 7 - 2 * 7 - len(bodies[0]) - 3 - 5)).SerializeToString()
    data = b":W&B\xe1\xbe\x00" + framed(bodies[0]) + framed(filler)
    assert len(data) == 32768 - 3
    (tmp_path / "run-x.wandb").write_bytes(data + bytes(3) + framed(bodies[1]))
    metrics = read_foreign(tmp_path)
    assert metrics["train/loss"].values.tolist() == [0, 1]
    assert not metrics.notes


def test_a_hostile_wandb_file_does_not_raise(tmp_path: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    file = tmp_path / "run-x.wandb"
    data = b":W&B\xe1\xbe\x00"
    for step, value in (("1e300", "1"), ('"x"', "2"), ("-4", "3"), ("NaN", "4"), ("[" * 2000, "5"), ("7", "9" * 400)):
        record = Record()
        record.history.item.add(key="_step", value_json=step)
        record.history.item.add(key="loss", value_json=value)
        data += framed(record.SerializeToString())
    file.write_bytes(data + framed(b"\xff"))
    metrics = read_foreign(tmp_path)
    assert metrics["train/loss"].steps.tolist() == [0]  # two without a step of their own, the second void
    assert metrics.notes[0] == f"{file} is damaged or torn in 1 place"


def test_what_is_no_log_is_said_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_foreign(tmp_path / "nothing")
    with pytest.raises(DataError, match="holds no metrics"):
        read_foreign(tmp_path)
    (tmp_path / "run-x.wandb").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"run-x\.wandb is not a file of Weights"):
        read_foreign(tmp_path)
    (tmp_path / "events.out.tfevents.1").write_bytes(b"nonsense of some length")
    with pytest.raises(DataError, match="no readable event"):
        read_foreign(tmp_path)


@pytest.mark.parametrize(("package", "name"), [("tensorboard", "events.out.tfevents.1"), ("wandb", "run-x.wandb")])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match=package) as caught:
        read_foreign(tmp_path)
    assert package in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("train/lm_loss", "train/lm_loss"),
        ("lm_loss", "train/lm_loss"),
        ("grad/layer_q_head", "train/grad/layer_q_head"),
        ("mean_grad_norm", "train/grad/mean_norm"),
        ("Loss/train", "train/loss"),
        ("val_loss", "eval/loss"),
        ("all/exact_accuracy", "eval/exact_accuracy"),
        ("train/q_halt_accuracy", "train/halt_accuracy"),
        ("Learning Rate", "train/lr"),
        ("train/action_9_fly", None),
        ("mine", None),
        ("", None),
    ],
)
def test_other_spellings(name: str, ours: str | None) -> None:
    assert our_name(name) == ours


def test_the_readers_need_no_torch(tmp_path: Path, wandb_run: Path) -> None:
    write_events(tmp_path, [(1, {"train/loss": 1.0})])
    script = (
        "import sys; from pathlib import Path; from trm_core.diagnose.foreign_metrics import read_foreign\n"
        "import trm_core.diagnose.read_metrics, json\n"
        "light = sorted({'wandb', 'tensorboard', 'torch'} & set(sys.modules))\n"
        "[read_foreign(Path(path)) for path in sys.argv[1:]]\n"
        "print(json.dumps([light, 'torch' in sys.modules, 'tensorflow' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path, wandb_run], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [[], False, False]
