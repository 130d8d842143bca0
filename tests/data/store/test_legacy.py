"""Legacy `.pt` files: tensors are read, anything else is refused and never run."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trm_core.data.legacy import read_legacy
from trm_core.errors import DataError, ExitCode

SKETCHES = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
CHILDREN = torch.arange(48, dtype=torch.float16).reshape(2, 3, 2, 4)
CHECKSUMS = torch.ones(2, 3, 5)
LABELS = torch.tensor([1, -100], dtype=torch.int32)


def save(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"sketches": SKETCHES, "checksums": CHECKSUMS, "children": CHILDREN, "labels": LABELS}, "all"),
        ({"sketches": SKETCHES, "checksums": None, "children": CHILDREN}, "sketches children"),
        ({"sketches": SKETCHES}, "sketches"),
        (SKETCHES, "sketches"),
        (torch.nn.Parameter(SKETCHES), "sketches"),
        ((SKETCHES,), "sketches"),
        ((SKETCHES, CHECKSUMS), "sketches checksums"),
        ((SKETCHES, CHECKSUMS, CHILDREN), "sketches checksums children"),
        ([SKETCHES, CHILDREN, LABELS], "sketches children labels"),
    ],
)
def test_formats(content: Any, names: str, tmp_path: Path) -> None:
    arrays = read_legacy(save(tmp_path / "a.pt", content))
    expected = {"sketches": SKETCHES, "checksums": CHECKSUMS, "children": CHILDREN, "labels": LABELS}
    assert set(arrays) == (set(expected) if names == "all" else set(names.split()))
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name].numpy())
    assert arrays["sketches"].dtype == np.float32
    assert arrays.get("children", np.float16(0)).dtype == np.float16
    assert arrays.get("labels", np.int64(0)).dtype == np.int64


def test_other_precisions_become_float32(tmp_path: Path) -> None:
    arrays = read_legacy(save(tmp_path / "a.pt", {"sketches": SKETCHES.bfloat16(), "children": CHILDREN.double()}))
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}


def test_strided_tensors(tmp_path: Path) -> None:
    np.testing.assert_array_equal(
        read_legacy(save(tmp_path / "a.pt", SKETCHES.transpose(0, 2)))["sketches"], SKETCHES.transpose(0, 2).numpy()
    )


class Payload:
    """A pickle that runs code when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.target}",))


@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: {"sketches": SKETCHES, "labels": p}, lambda p: [SKETCHES, p]])
def test_code_in_a_pickle_is_not_run(wrap: Any, tmp_path: Path) -> None:
    target = tmp_path / "was-here"
    path = save(tmp_path / "evil.pt", wrap(Payload(target)))
    with pytest.raises(DataError, match="holds something other than tensors") as refusal:
        read_legacy(path)
    assert refusal.value.exit_code == ExitCode.DATA
    assert not target.exists()
    torch.load(path, weights_only=False)  # the attack is real
    assert target.exists()


def test_bare_pickle_is_not_run(tmp_path: Path) -> None:
    target = tmp_path / "was-here"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Payload(target)))
    with pytest.raises(DataError, match=r"is not a \.pt file"):
        read_legacy(tmp_path / "evil.pt")
    assert not target.exists()


def with_nan(tensor: torch.Tensor, row: int) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[row, 0, 0] = float("nan")
    return tensor


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sketches": SKETCHES, "colour": CHECKSUMS}, "unexpected key 'colour'"),
        ({"sketches": SKETCHES, 3: CHECKSUMS}, "unexpected key 3"),
        ({"children": CHILDREN}, "has no tensor 'sketches'"),
        ({"sketches": [1.0, 2.0]}, "sketches is a list, not a tensor"),
        ({"sketches": SKETCHES, "labels": "x"}, "labels is a str"),
        ("text", "holds a str, not tensors"),
        ((), "holds an empty tuple"),
        ((SKETCHES, CHECKSUMS, CHECKSUMS), "cannot tell what element 2"),
        (SKETCHES[0], r"sketches has shape \[3, 4\]; expected \[N, k, D\]"),
        (SKETCHES.long(), "sketches has dtype torch.int64; expected floating point"),
        ({"sketches": SKETCHES, "labels": LABELS.float()}, "labels has dtype torch.float32; expected integers"),
        ({"sketches": SKETCHES, "labels": LABELS - 5}, "labels: row 0: -4 is a label below 0"),
        ({"sketches": SKETCHES, "labels": LABELS[:1]}, "labels has N = 1 where sketches has N = 2"),
        ({"sketches": SKETCHES, "children": CHILDREN[:, :2]}, "children has k = 2 where sketches has k = 3"),
        ({"sketches": SKETCHES, "children": CHILDREN[:, :, :0]}, "children has m = 0"),
        (with_nan(SKETCHES, 1), "sketches: row 1 holds NaN or infinity"),
        (torch.zeros(1, 1, 1).expand(10**9, 100, 70), r"claims \[1000000000, 100, 70\], more than the file's"),
        (torch.zeros(2, 3, 4).to_sparse(), "is not a dense tensor"),
    ],
)
def test_refusals(content: Any, message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", content)
    with pytest.raises(DataError, match=message) as refusal:
        read_legacy(path)
    assert str(path) in refusal.value.message
    assert "\n" not in refusal.value.message


def test_old_format_damage_and_absence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"before 1\.6"):
        read_legacy(save(tmp_path / "old.pt", SKETCHES, _use_new_zipfile_serialization=False))
    whole = save(tmp_path / "a.pt", SKETCHES).read_bytes()
    (tmp_path / "short.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme", "hello")
    for name, message in {
        "short.pt": r"is not a \.pt file",
        "empty.pt": "is empty",
        "other.pt": "is damaged or not a PyTorch file",
        "absent.pt": "no such file",
        ".": "is a folder",
        "\0": "no such file",
    }.items():
        with pytest.raises(DataError, match=message):
            read_legacy(tmp_path / name)


def rezipped(source: Path, target: Path, compression: int, replace: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            name = entry.filename.rpartition("/")[2]
            new.writestr(entry.filename, replace.get(name, old.read(entry)))
    return target


def test_compressed_and_oversized_entries(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", torch.zeros(1000, 10, 10))
    bomb = rezipped(path, tmp_path / "bomb.pt", zipfile.ZIP_DEFLATED, {})
    assert bomb.stat().st_size < path.stat().st_size / 50
    with pytest.raises(DataError, match="is compressed"):
        read_legacy(bomb)
    with pytest.raises(DataError, match="its pickle has 2000000 bytes"):
        read_legacy(rezipped(path, tmp_path / "b.pt", zipfile.ZIP_STORED, {"data.pkl": bytes(2_000_000)}))


def test_tensor_larger_than_its_storage(tmp_path: Path) -> None:
    """The pickle says more elements than the record holds: torch must not read beyond it."""
    path = save(tmp_path / "a.pt", {"sketches": torch.ones(64, 8, 8), "labels": torch.ones(64, dtype=torch.int64)})
    short = rezipped(path, tmp_path / "b.pt", zipfile.ZIP_STORED, {"0": b"\1\2\3\4" * 4})
    with pytest.raises(DataError):
        read_legacy(short)


def test_random_damage(tmp_path: Path) -> None:
    """Any bytes: arrays or a DataError, nothing else."""
    data = np.frombuffer(save(tmp_path / "a.pt", {"sketches": SKETCHES, "labels": LABELS}).read_bytes(), np.uint8)
    used = np.flatnonzero(data)
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = data.copy()
        damaged[random.choice(used, 2)] = random.integers(0, 256, 2)
        (tmp_path / "b.pt").write_bytes(damaged.tobytes())
        try:
            read_legacy(tmp_path / "b.pt")
        except DataError:
            continue
