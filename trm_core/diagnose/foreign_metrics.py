"""Read metrics that other programs logged: TensorBoard event files and the files of Weights & Biases.

Both formats are protocol buffers in a simple record framing. The packages that define the messages decode them, but the
framing is parsed here: TensorBoard's reader checksums every byte in pure Python, at some megabytes per second, and
imports TensorFlow if it is installed; wandb's reader is gone from its newer versions.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trm_core.diagnose.series import Metrics, Series
from trm_core.errors import DataError, UsageError
from trm_core.training.metric_registry import describe

Point = tuple[str, int, float]  # name, step, value

# Names used in pipeline.md's code, in the public code of TRM and HRM, and by most people for the same metric.
_ALIASES = {
    "train/mean_grad_norm": "train/grad/mean_norm",
    "train/max_grad_norm": "train/grad/max_norm",
    "train/min_grad_norm": "train/grad/min_norm",
    "train/grad_mean": "train/grad/mean",
    "train/grad_std": "train/grad/std",
    "train/num_zero_grad": "train/grad/num_zero",
    "train/num_nan_grad": "train/grad/num_nan",
    "train/num_inf_grad": "train/grad/num_inf",
    "train/clip_ratio": "train/grad_clip_ratio",
    "train/gradient_norm": "train/grad_norm",
    "train/q_halt_accuracy": "train/halt_accuracy",
    "train/steps": "train/ponder_cost",
    "train/acc": "train/accuracy",
    "train/learning_rate": "train/lr",
    "train/global_step": "train/step",
    "train/epsilon": "train/dqn_epsilon",
    "train/buffer_size": "train/dqn_buffer_size",
    "train/replay_size": "train/dqn_buffer_size",
    "train/q_mean": "train/dqn_q_mean",
    "train/reward_mean": "train/dqn_reward_mean",
    "train/reward_std": "train/dqn_reward_std",
    "train/td_error": "train/dqn_td_error_mean",
    "train/td_error_mean": "train/dqn_td_error_mean",
    "train/expand_pct": "train/action_expand_pct",
    "train/action_continue": "train/action_0_continue",
    "train/action_halt": "train/action_1_halt",
    "train/action_expand": "train/action_2_expand",
    "eval/lm_loss": "eval/loss",
    "eval/acc": "eval/accuracy",
}
_PARTS = {
    "train": "train", "training": "train", "eval": "eval", "evaluation": "eval", "val": "eval", "valid": "eval",
    "validation": "eval", "test": "eval", "all": "eval",
}  # fmt: skip
_BEFORE = re.compile(rf"({'|'.join(_PARTS)})[/._ -](.+)")
_BEHIND = re.compile(rf"(.+)[/._ -]({'|'.join(_PARTS)})")


def read_foreign(path: Path) -> Metrics:
    """The series in another program's log, under our names: a TensorBoard folder or event file, or a folder or file of
    Weights & Biases (offline runs too). Its `notes` say what was left out. Raises DataError if there is nothing to read
    and UsageError if the package that decodes it is not installed.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist")
    is_file = path.is_file()
    events = [path] if is_file and "tfevents" in path.name else _below(path, "*tfevents*")
    if events:
        return _by_our_names(*_tensorboard(events))
    runs = [path] if is_file and path.suffix == ".wandb" else _below(path, "run-*.wandb")
    if runs:
        return _by_our_names(*_wandb(runs))
    raise DataError(
        f"{path} holds no metrics that can be read",
        hint="give metrics.jsonl's run directory, a TensorBoard folder (events.out.tfevents.*) or a folder of W&B "
        "(offline-run-*/run-*.wandb)",
    )


def our_name(name: str) -> str | None:
    """The registry's name for the metric that is called `name` elsewhere; None if no name clearly matches."""
    spellings = [name]
    plain = name.strip().lower()
    if before := _BEFORE.fullmatch(plain):
        spellings.append(f"{_PARTS[before[1]]}/{before[2]}")
    if behind := _BEHIND.fullmatch(plain):
        spellings.append(f"{_PARTS[behind[2]]}/{behind[1]}")
    spellings += [plain, f"train/{plain}"]
    for spelling in spellings:
        known = _ALIASES.get(spelling.replace(" ", "_"), spelling.replace(" ", "_"))
        if describe(known):
            return known
    return None


def _below(path: Path, pattern: str) -> list[Path]:
    return sorted(found for found in path.rglob(pattern) if found.is_file()) if path.is_dir() else []


def _by_our_names(points: Iterable[Point], notes: list[str]) -> Metrics:
    steps: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    void = 0
    for name, step, value in points:
        if name not in steps:
            steps[name], values[name] = [], []
        # A run that went back to a checkpoint logs the steps after it again; the later values count.
        while steps[name] and steps[name][-1] >= step:
            steps[name].pop()
            values[name].pop()
            void += 1
        steps[name].append(step)
        values[name].append(value if math.isfinite(value) else math.nan)
    ours = {name: our_name(name) for name in steps}
    # Where two names mean the same metric, the one spelled as ours counts, otherwise the first.
    chosen: dict[str, str] = {}
    for name in sorted(steps, key=lambda name: ours[name] != name):
        if (own := ours[name]) is not None:
            chosen.setdefault(own, name)
    series = {own: Series(np.array(steps[name], np.int64), np.array(values[name])) for own, name in chosen.items()}
    unknown = [name for name in steps if ours[name] is None]
    twice = len(steps) - len(unknown) - len(chosen)
    if unknown:
        notes.append(f"{len(unknown)} of {len(steps)} names are not ours and were left out: {_some(unknown)}")
    if twice:
        notes.append(f"{twice} names mean the same as another and were left out")
    if void:
        notes.append(f"{void:,} points were logged again after the run had gone back, and do not count")
    return Metrics(series, notes)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


# TensorBoard


def _tensorboard(files: list[Path]) -> tuple[list[Point], list[str]]:
    """The points in the folder written last. All files of a folder are one run, as in TensorBoard itself."""
    try:
        from google.protobuf.message import DecodeError
        from tensorboard.compat.proto.event_pb2 import Event
    except ImportError as error:
        raise UsageError(
            "reading TensorBoard's files needs the tensorboard package", hint="pip install 'trm[tensorboard]'"
        ) from error
    notes: list[str] = []
    newest = max(files, key=lambda file: (file.stat().st_mtime, file)).parent
    if left_out := len({file.parent for file in files}) - 1:
        notes.append(f"read {newest}, the newest; {left_out} more {'folder' if left_out == 1 else 'folders'} left out")
    points: list[Point] = []
    readable = 0
    for file in files:
        if file.parent != newest:
            continue
        try:
            for record in _event_records(_bytes(file)):
                event = Event.FromString(record)
                readable += 1
                for value in event.summary.value:
                    number = _scalar(value)
                    if number is not None:
                        points.append((value.tag, event.step, number))
        except (_Damaged, DecodeError):
            notes.append(f"{file} is damaged or torn; what stands before that was read")
    if not readable:
        raise DataError(f"{newest} holds no readable event", hint="the files are empty or damaged")
    return points, notes


class _Damaged(Exception):
    """A record that does not match its framing."""


def _event_records(data: bytes) -> Iterator[bytes]:
    """Parse TFRecord: length (uint64), its masked CRC32C, the record, its masked CRC32C. The first checksum protects
    the framing; the second is not checked, because a damaged record does not decode.
    """
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    position = 0
    while position < len(data):
        header = data[position : position + 12]
        if len(header) < 12 or masked_crc32c(header[:8]) != struct.unpack("<I", header[8:])[0]:
            raise _Damaged
        start = position + 12
        position = start + struct.unpack("<Q", header[:8])[0] + 4
        if position > len(data):
            raise _Damaged
        yield data[start : position - 4]


def _scalar(value: Any) -> float | None:
    """The number in a summary value; None for an image, a histogram or a text."""
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return float(value.simple_value)
    if kind != "tensor" or any(dim.size != 1 for dim in value.tensor.tensor_shape.dim):
        return None
    tensor = value.tensor
    if tensor.float_val or tensor.double_val:
        return float([*tensor.float_val, *tensor.double_val][0])
    code = {(1, 4): "<f", (2, 8): "<d"}.get((tensor.dtype, len(tensor.tensor_content)))
    return float(struct.unpack(code, tensor.tensor_content)[0]) if code else None


# Weights & Biases

_WANDB_HEADER = b":W&B\xe1\xbe\x00"
_BLOCK = 32768
_LAST_STEP = 2**62


def _wandb(files: list[Path]) -> tuple[list[Point], list[str]]:
    """The points of the run that was written last."""
    try:
        from google.protobuf.message import DecodeError
        from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made as it is imported
    except ImportError as error:
        raise UsageError(
            "reading the files of Weights & Biases needs the wandb package", hint="pip install wandb"
        ) from error
    notes: list[str] = []
    newest = max(files, key=lambda file: (file.stat().st_mtime, file))
    if len(files) > 1:
        left_out = len(files) - 1
        notes.append(f"read {newest}, the newest; {left_out} more {'run' if left_out == 1 else 'runs'} left out")
    data = _bytes(newest)
    if not data.startswith(_WANDB_HEADER):
        raise DataError(f"{newest} is not a file of Weights & Biases, or is of an unknown version")
    points: list[Point] = []
    damaged = 0

    def note_damage() -> None:
        nonlocal damaged
        damaged += 1

    for body in _wandb_records(data, note_damage):
        try:
            record = Record.FromString(body)
        except DecodeError:
            note_damage()
            continue
        if record.WhichOneof("record_type") == "history":
            points += _history(record.history)
    if damaged:
        notes.append(f"{newest} is damaged or torn in {damaged} {'place' if damaged == 1 else 'places'}")
    return points, notes


def _wandb_records(data: bytes, note_damage: Callable[[], None]) -> Iterator[bytes]:
    """Parse LevelDB's log format: blocks of 32 KiB that hold fragments, each of CRC32 (uint32), length (uint16), kind
    (1: whole, 2: first, 3: middle, 4: last) and body. After damage, parsing resumes at the next block.
    """
    position = len(_WANDB_HEADER)
    parts: list[bytes] | None = None
    while position < len(data):
        rest = _BLOCK - position % _BLOCK
        if rest < 7:
            position += rest
            continue
        header = data[position : position + 7]
        crc, length, kind = struct.unpack("<IHB", header) if len(header) == 7 else (0, 0, 0)
        body = data[position + 7 : position + 7 + length]
        sound = kind in (1, 2, 3, 4) and len(body) == length <= rest - 7
        if not sound or zlib.crc32(body, zlib.crc32(bytes([kind]))) != crc:
            note_damage()
            position, parts = position + rest, None
            continue
        position += 7 + length
        if kind in (1, 2):
            parts = []
        if parts is None:  # the rest of a record whose start was lost
            continue
        parts.append(body)
        if kind in (1, 4):
            yield b"".join(parts)
            parts = None


def _history(history: Any) -> Iterator[Point]:
    numbers: dict[str, float] = {}
    for item in history.item:
        try:
            value = json.loads(item.value_json)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                numbers[".".join(item.nested_key) or item.key] = float(value)
        except (ValueError, RecursionError, OverflowError):
            continue
    step = numbers.get("_step", float(history.step.num))
    if not 0 <= step <= _LAST_STEP:  # also NaN
        return
    for name, number in numbers.items():
        if not name.startswith("_"):  # wandb's own: _step, _runtime, _timestamp
            yield name, int(step), number


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
