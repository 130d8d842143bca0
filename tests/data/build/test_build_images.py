"""Digits, folders and npz files of pictures: the lattice, the encoders, shifted copies."""

from __future__ import annotations

import io
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from built_file import Build
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold
from small_sources import AS_STORED, write_pictures, write_turned

from trm_core.data.build.augment import shifted, warped
from trm_core.data.build.lattice import factor, make_lattice
from trm_core.data.build.pictures import ImageFile
from trm_core.errors import ConfigError, DataError


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_every_pixel_stands_in_its_cell(rows: int, columns: int, r: int, c: int, pixels: int, channels: int) -> None:
    height, width = rows * r * pixels, columns * c * pixels
    lattice = make_lattice(height, width, rows * columns, r * c)
    picture = np.arange(height * width * channels, dtype=np.float64).reshape(1, height, width, channels)
    cut = lattice.cut(picture)[0]
    assert cut.shape[:2] == (rows * columns, r * c)
    padded_rows, padded_columns = lattice.padded
    picture = np.pad(picture, ((0, 0), (0, padded_rows - height), (0, padded_columns - width), (0, 0)))
    (_, cell_columns), (sub_rows, sub_columns) = lattice.cells, lattice.subcells
    down, right = lattice.subcell_shape
    for k in range(cut.shape[0]):
        for m in range(cut.shape[1]):
            top = (k // cell_columns * sub_rows + m // sub_columns) * down
            left = (k % cell_columns * sub_columns + m % sub_columns) * right
            assert np.array_equal(cut[k, m], picture[0, top : top + down, left : left + right].ravel())


def test_a_lattice_that_does_not_divide_is_padded_and_too_fine_ones_are_refused() -> None:
    lattice = make_lattice(28, 28, 16, 4)
    assert (lattice.padded, lattice.subcell_shape) == ((32, 32), (4, 4))
    assert factor(12, 30, 60) == (2, 6)
    with pytest.raises(ConfigError, match="do not fit on pictures of 8 x 8"):
        make_lattice(8, 8, 64, 4)


def test_digits_are_2x2_cells_with_their_mean_as_sketch(build: Build) -> None:
    built = build("digits")
    images = load_digits().images
    children = built.by_id("children")
    assert children.shape == (1797, 16, 4, 1)
    for capsule in range(16):
        top, left = capsule // 4 * 2, capsule % 4 * 2
        assert np.allclose(children[:, capsule, :, 0], images[:, top : top + 2, left : left + 2].reshape(-1, 4) / 16)
    assert np.allclose(built.by_id("sketches")[..., 0], children[..., 0].mean(axis=2, dtype=np.float32), atol=1e-3)
    assert np.array_equal(built.by_id("labels"), load_digits().target)
    assert built.manifest["class_names"] == [str(digit) for digit in range(10)]
    assert built.report.duplicates == 0


@pytest.mark.parametrize("shuffle", [True, False])
def test_digits_folds_are_those_of_scikit_learn(build: Build, shuffle: bool) -> None:
    built = build("digits", folds=5, fold=3, shuffle=shuffle, seed=1, validation=0.1)
    target = load_digits().target
    folds = list(StratifiedKFold(5, shuffle=shuffle, random_state=1 if shuffle else None).split(target, target))
    assert np.array_equal(np.sort(built.splits["test"]["ids"]), folds[3][1])
    assert len(built.splits["validation"]["ids"]) in range(175, 185)


def test_shifted_copies_are_made_for_training_alone(build: Build) -> None:
    built = build("digits", augment_shift=1)
    plain = build("digits", name="plain.h5")
    train, originals = built.splits["train"], plain.splits["train"]
    count = len(originals["ids"])
    assert len(train["ids"]) == 9 * count - sum("left out" in message for message in built.messages)
    assert built.manifest["augmented_rows"] == len(train["ids"]) - count
    assert np.array_equal(train["children"][:count], originals["children"])
    for split in ("validation", "test"):
        assert np.array_equal(built.splits[split]["children"], plain.splits[split]["children"])
    assert built.report.expansion_value == plain.report.expansion_value
    # The copy with its pixels one to the right of the first training digit is there, under the digit's row number.
    image = np.zeros((8, 8), np.float32)
    image[:, 1:] = load_digits().images[train["ids"][0]][:, :-1] / 16
    copies = train["children"][count:][train["ids"][count:] == train["ids"][0]]
    cells = make_lattice(8, 8, 16, 4).cut(image[None, :, :, None])[0]
    assert len(copies) == 8
    assert sum(np.array_equal(copy, cells.astype(np.float16)) for copy in copies) == 1


@pytest.mark.slow
def test_warped_copies_depend_on_the_picture_and_the_seed_alone(build: Build) -> None:
    built = build("digits", augment_warps=2)
    assert built.manifest["augmented_rows"] == 2 * 1437
    assert build("digits", name="w.h5", augment_warps=2, workers=1).report.content_hash == built.report.content_hash
    picture = load_digits().images[0][:, :, None].astype(np.float32) / 16
    one, two = warped(picture, 2, seed=0)
    assert one.shape == picture.shape
    assert not np.array_equal(one, two)
    assert np.array_equal(one, warped(picture, 1, seed=0)[0])
    assert not np.array_equal(one, warped(picture, 1, seed=1)[0])
    assert 0.3 < float(np.corrcoef(one.ravel(), picture.ravel())[0, 1]) < 1.0


def test_shifts_fill_with_zero_and_never_wrap() -> None:
    picture = np.arange(1, 10, dtype=np.float32).reshape(3, 3, 1)
    copies = [copy[..., 0].tolist() for copy in shifted(picture, 1)]
    assert len(copies) == 8
    assert [[0, 0, 0], [1, 2, 3], [4, 5, 6]] in copies
    assert [[5, 6, 0], [8, 9, 0], [0, 0, 0]] in copies


def test_a_folder_of_pictures_in_pixels_and_patches(build: Build, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", mode="RGB")
    built = build(folder, num_capsules=4, num_children=9)
    assert (built.report.kind, built.report.encoder) == ("images", "pixels")
    assert built.manifest["class_names"] == ["dark", "light"]
    assert built.all("children").shape == (24, 4, 9, 12)
    patches = build(folder, name="pca.h5", num_capsules=4, num_children=4, encoder="patch-pca", dim=8)
    children = patches.splits["train"]["children"].astype(np.float32)
    assert children.shape[1:] == (4, 4, 8)
    assert abs(float(np.sqrt((children**2).mean())) - 1.0) < 0.01
    # The strongest direction of these patches is their brightness, so the mean tells the classes apart.
    assert patches.report.expansion_value is not None
    assert patches.report.expansion_value["sketches"] == 1.0


def test_patch_pca_is_fitted_on_the_training_split_alone(build: Build, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", per_class=20)
    first = build(folder, name="a.h5", num_capsules=4, num_children=4, encoder="patch-pca", dim=4)
    held_out = np.sort(np.concatenate([first.splits["validation"]["ids"], first.splits["test"]["ids"]]))
    files = sorted(folder.rglob("*.png"))
    rng = np.random.default_rng(5)
    for row in held_out:  # other pictures in their place: splits depend on labels and duplicates, not on pixels
        Image.fromarray(rng.integers(0, 255, (12, 12), dtype=np.uint8)).save(files[row])
    second = build(folder, name="b.h5", num_capsules=4, num_children=4, encoder="patch-pca", dim=4)
    assert np.array_equal(first.splits["train"]["children"], second.splits["train"]["children"])
    assert not np.array_equal(first.splits["test"]["children"], second.splits["test"]["children"])


def test_pictures_of_different_sizes_need_image_size(build: Build, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", size=12)
    write_pictures(tmp_path / "more", size=16, seed=1)
    (tmp_path / "more" / "dark" / "000.png").rename(folder / "dark" / "zzz.png")
    with pytest.raises(DataError, match=r"zzz.png: is 16 x 16, but .* is 12 x 12"):
        build(folder)
    assert build(folder, image_size=8).report.counts["train"] > 0


def test_images_in_an_npz_file(build: Build, tmp_path: Path) -> None:
    digits = load_digits()
    np.savez_compressed(tmp_path / "digits.npz", images=digits.images[:300], labels=digits.target[:300])
    built = build(tmp_path / "digits.npz")
    assert (built.report.kind, built.report.dim) == ("images", 1)
    assert np.allclose(built.by_id("children").reshape(300, -1).max(), 1.0)
    assert np.array_equal(built.by_id("labels"), digits.target[:300])
    np.savez(tmp_path / "rgb.npz", x=np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    unlabelled = build(tmp_path / "rgb.npz", name="rgb.h5", num_concepts=4)
    assert (unlabelled.report.task, unlabelled.report.dim) == ("concepts", 3)
    assert float(unlabelled.all("children").max()) <= 1.0


def test_a_broken_picture_is_named(build: Build, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures")
    broken = folder / "light" / "005.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=r"005.png: cannot be decoded"):
        build(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


def tiff_with_text_for_a_number() -> bytes:
    """Of the place where its pixels begin it says that it is text."""
    before = as_file("TIFF")
    after = re.sub(struct.pack("<H", 273) + b"[\3\4]\0", struct.pack("<HH", 273, 2), before)
    assert after != before
    return after


def avif_without_its_picture() -> bytes:
    if not features.check("avif"):
        pytest.skip("this Pillow knows no AVIF")
    return as_file("AVIF").replace(b"av01", b"av0X")


def as_file(form: str) -> bytes:
    written = io.BytesIO()
    Image.new("L", (12, 12)).save(written, form)
    return written.getvalue()


@pytest.mark.parametrize(
    ("damaged", "says"), [(tiff_with_text_for_a_number, "TypeError: "), (avif_without_its_picture, "RuntimeError: ")]
)
def test_whatever_pillow_raises_the_picture_is_named(
    build: Build, tmp_path: Path, damaged: Callable[[], bytes], says: str
) -> None:
    folder = write_pictures(tmp_path / "pictures")
    (folder / "light" / "odd.tif").write_bytes(damaged())
    with pytest.raises(DataError, match=rf"odd.tif: cannot be decoded as an image \({says}"):
        build(folder, num_capsules=4, num_children=4)


def test_pictures_beside_the_class_folders_are_not_lost(build: Build, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures")
    for number, file in enumerate(sorted((folder / "dark").iterdir())[:3]):
        file.rename(folder / f"beside{number}.png")
    built = build(folder, num_capsules=4, num_children=4)
    assert built.by_id("labels").tolist() == [0] * 9 + [1] * 12 + [-100] * 3
    assert built.manifest["class_names"] == ["dark", "light"]
    assert "3 samples have no label: they are kept and never scored" in built.messages
    unlabelled = build(folder, name="u.h5", label="none", num_capsules=4, num_children=4, num_concepts=4)
    assert len(unlabelled.by_id("labels")) == 24
    assert (unlabelled.by_id("labels") >= 0).all(), "each capsule of each picture has a concept"


def test_what_programs_hide_in_folders_is_no_sample(build: Build, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures")
    plain = build(folder, name="plain.h5", num_capsules=4, num_children=4)
    (folder / ".ipynb_checkpoints").mkdir()
    shutil.copy(next((folder / "dark").iterdir()), folder / ".ipynb_checkpoints" / "a-checkpoint.png")
    (folder / "__MACOSX" / "dark").mkdir(parents=True)
    (folder / "__MACOSX" / "dark" / "b.png").write_bytes(b"\0\5\x16\7")
    (folder / "dark" / "._b.png").write_bytes(b"\0\5\x16\7")
    (folder / "dark" / "photo.heic").write_bytes(b"nothing that is read")
    (folder / "dark" / "gone.png").symlink_to(folder / "nowhere.png")
    built = build(folder, num_capsules=4, num_children=4)
    assert built.manifest["class_names"] == ["dark", "light"]
    assert built.manifest["content_hash"] == plain.manifest["content_hash"]
    assert any(
        "1 files were left out, as they are not pictures that trm knows (.heic)" in said for said in built.messages
    )


def test_split_folders_are_not_classes(build: Build, tmp_path: Path) -> None:
    write_pictures(tmp_path / "train")
    (tmp_path / "set").mkdir()
    (tmp_path / "train").rename(tmp_path / "set" / "train")
    with pytest.raises(DataError, match="splits"):
        build(tmp_path / "set")


def test_more_than_eight_bits_are_refused_and_not_cut_off(build: Build, tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "deep" / label).mkdir(parents=True)
        pixels = np.linspace(500, 40_000, 64).reshape(8, 8).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / "deep" / label / "0.png")
    with pytest.raises(DataError, match=r"0.png: has more than 8 bits per channel \(mode I") as refused:
        build(tmp_path / "deep")
    assert "npz" in str(refused.value.hint)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_drawn_in_transparency_is_seen(build: Build, tmp_path: Path, mode: str) -> None:
    """Black on nothing is black on white."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 2, (20, 8, 8), dtype=np.uint8) * 255
    for number, alpha in enumerate(drawn):
        folder = tmp_path / "drawn" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((8, 8, len(mode)), np.uint8)
        pixels[..., -1] = alpha
        Image.fromarray(pixels, mode).save(folder / f"{number:02d}.png")
    built = build(tmp_path / "drawn", validation=0.0, test=0.0, num_capsules=4, num_children=4)
    assert built.report.duplicates == 0
    first = built.by_id("children").reshape(20, 4, 4, -1)[0]
    assert 1 - first.mean() == pytest.approx(float(drawn[0].mean()) / 255, abs=0.01)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_pictures_are_read_upright(tmp_path: Path, suffix: str) -> None:
    """As EXIF defines it: 6 says that the stored first row is the picture's right column, and so on."""
    upright = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    for orientation in AS_STORED:
        file = write_turned(tmp_path / f"{orientation}.{suffix}", upright, orientation)
        assert np.array_equal(ImageFile(file, "RGB", None).load(), upright), orientation


def test_a_folder_of_turned_photos_is_that_of_upright_ones(build: Build, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(24):
        pixels = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
        for folder, orientation in (("plain", 1), ("turned", 1 + number % 8)):
            (tmp_path / folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            write_turned(tmp_path / folder / "ab"[number % 2] / f"{number:02d}.png", pixels, orientation)
    plain, turned = (
        build(tmp_path / name, name=f"{name}.h5", num_capsules=4, num_children=6) for name in ("plain", "turned")
    )
    assert plain.report.content_hash == turned.report.content_hash


def test_broken_notes_of_a_camera_cost_no_picture(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.webp", exif=b"Exif\0\0no TIFF header", lossless=True)
    with pytest.raises(SyntaxError), Image.open(tmp_path / "a.webp") as picture:
        picture.getexif()
    assert np.array_equal(ImageFile(tmp_path / "a.webp", "RGB", None).load(), pixels)


def test_labels_that_are_none_are_no_classes(build: Build, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((60, 8, 8))
    labels = np.array([np.nan] * 5 + [-100.0] * 5 + [0.0, 1.0] * 25)
    np.savez(tmp_path / "n.npz", images=images, labels=labels)
    built = build(tmp_path / "n.npz", validation=0.0, test=0.0)
    assert built.manifest["class_names"] == ["0", "1"]
    assert built.by_id("labels").tolist() == [-100] * 10 + [0, 1] * 25


def test_pictures_that_are_all_alike(build: Build, tmp_path: Path) -> None:
    np.savez(tmp_path / "same.npz", images=np.full((40, 32, 32), 0.5), labels=np.arange(40) % 2)
    assert np.isfinite(build(tmp_path / "same.npz", encoder="patch-pca", dim=16).all("children")).all()
