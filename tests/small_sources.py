"""Small data sources of every kind, generated on the spot."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

_HAM = "see you at home tonight love the dinner was good call me later when you are free from work ok then"
_SPAM = "win a free prize now text urgent cash claim your reward call this number offer mobile bonus code"
_WORDS = {"ham": _HAM.split(), "spam": _SPAM.split()}


def write_messages(path: Path, count: int, seed: int = 0, duplicates: int = 0) -> Path:
    """Write label<TAB>text lines without a header, the last `duplicates` of which repeat earlier ones in upper case."""
    rng = np.random.default_rng(seed)
    lines: list[str] = []
    for number in range(count - duplicates):
        label = "spam" if rng.random() < 0.3 else "ham"
        words = [*rng.choice(_WORDS[label], 6 + int(rng.integers(12))), f"n{number}"]
        lines.append(f"{label}\t{' '.join(words[:5])}, {' '.join(words[5:])}.")
    for number in range(duplicates):
        lines.append(lines[number * 2].upper().replace("HAM\t", "ham\t").replace("SPAM\t", "spam\t"))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_text_folders(folder: Path, messages: Path) -> Path:
    """The lines of `write_messages` in a file each, in a folder for each class, and others that are no samples."""
    for number, line in enumerate(messages.read_text().splitlines()):
        label, _, text = line.partition("\t")
        path = folder / label / f"{number:04}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\r\n", newline="")
    (folder / "README.txt").write_text("What these messages are, and whom to thank for them.")
    (folder / "ham" / ".ipynb_checkpoints").mkdir()
    (folder / "ham" / ".ipynb_checkpoints" / "0000-checkpoint.txt").write_text("a copy")
    return folder


def write_pictures(folder: Path, per_class: int = 12, size: int = 12, mode: str = "L", seed: int = 0) -> Path:
    """Write folders dark/ and light/ of png files."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    for label, level in (("dark", 40), ("light", 160)):
        (folder / label).mkdir(parents=True)
        for number in range(per_class):
            shape = (size, size) if mode == "L" else (size, size, 3)
            pixels = np.clip(rng.normal(level, 30, shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number:03d}.png")
    return folder


# What a camera stores for an upright picture, by the EXIF orientation that it records.
AS_STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, 3),
}


def write_turned(file: Path, upright: np.ndarray, orientation: int) -> Path:
    """Write a picture as a camera held in that orientation does."""
    from PIL import Image

    notes = Image.Exif()
    notes[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(AS_STORED[orientation](upright))).save(file, exif=notes, lossless=True)
    return file


def write_table(path: Path, rows: list[list[object]], header: list[str]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def random_table(path: Path, count: int = 60, seed: int = 0) -> Path:
    """Write a table with columns age, colour, weight and label, which is whether weight exceeds 50."""
    rng = np.random.default_rng(seed)
    rows: list[list[object]] = []
    for _ in range(count):
        weight = round(float(rng.normal(50, 10)), 3)
        rows.append([int(rng.integers(18, 80)), rng.choice(["red", "green", "blue"]), weight, int(weight > 50)])
    return write_table(path, rows, ["age", "colour", "weight", "label"])


def write_arc(path: Path, tasks: int = 12, seed: int = 0) -> Path:
    """Write a challenges/solutions pair of ConceptARC-like tasks with two train pairs and one test pair each."""
    rng = np.random.default_rng(seed)

    def grid() -> list[list[int]]:
        return rng.integers(0, 10, (int(rng.integers(2, 9)), int(rng.integers(2, 9)))).tolist()

    challenges, solutions = {}, {}
    for number in range(tasks):
        name = f"{('Copy', 'Count')[number % 2]}{number // 2 + 1}"
        challenges[name] = {
            "train": [{"input": grid(), "output": grid()} for _ in range(2)],
            "test": [{"input": grid()}],
        }
        solutions[name] = [grid()]
    (path.parent / (path.name + "_solutions.json")).write_text(json.dumps(solutions))
    file = path.parent / (path.name + "_challenges.json")
    file.write_text(json.dumps(challenges))
    return file
