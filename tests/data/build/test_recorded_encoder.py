"""Raw samples through the encoder that a capsule file holds: bit for bit what the file stores."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tiny
from built_file import Build, Built
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from small_sources import random_table, write_arc, write_messages, write_pictures, write_table
from test_build_pretrained import minilm  # noqa: F401

from trm_core.config.schema import BuildConfig
from trm_core.config.schema_keys import choices
from trm_core.data.build.extras import ModelSpec
from trm_core.data.build.pipeline import build_capsules
from trm_core.data.build.pretrained import Loaded
from trm_core.data.build.registry import ENCODERS
from trm_core.data.preprocessing_folder import ARRAYS, DOCUMENT
from trm_core.data.recorded_encoder import RecordedEncoder
from trm_core.data.store import CapsuleWriter, EncoderRecord, open_capsules, quarantine
from trm_core.errors import DataError

FIELDS = ("sketches", "children", "checksums", "mask", "parents")
SMALL = {"num_capsules": 4, "num_children": 2, "dim": 16}
BuiltOnce = Callable[[str], tuple[Path, Any]]


def check(built: Built, samples: Sequence[Any], kind: str | None = None, rows: np.ndarray | None = None) -> None:
    """`samples`: of the rows `rows` of the source (all). From the file and from a saved folder, together and alone."""
    path = built.report.path
    folder = path.with_name(path.name + ".saved")
    encoder = RecordedEncoder.of_file(path)
    encoder.save(folder)
    assert sorted(file.name for file in folder.iterdir()) == [DOCUMENT, ARRAYS]
    stored = {name: built.by_id(name) for name in FIELDS if name in built.splits["train"]}
    if rows is not None:
        stored = {name: values[rows] for name, values in stored.items()}
    assert len(samples) == len(stored["sketches"])
    for each in (encoder, RecordedEncoder.of_folder(folder)):
        same(each.encode(samples, kind), stored)
        for row in {0, len(samples) // 2, len(samples) - 1}:
            same(each.encode([samples[row]], kind), {name: values[row : row + 1] for name, values in stored.items()})
    shutil.rmtree(folder)


def same(found: dict[str, np.ndarray], stored: dict[str, np.ndarray]) -> None:
    assert set(found) == set(stored)
    for name, values in stored.items():
        assert found[name].dtype == values.dtype, name
        assert found[name].shape == values.shape, name
        assert found[name].tobytes() == values.tobytes(), name


def messages_of(path: Path) -> list[str]:
    return [line.split("\t")[1] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "asked",
    [
        {"encoder": "tfidf-svd"},
        {"encoder": "hashing-svd"},
        {"encoder": "tfidf-svd", "dtype": "float32", "seed": 5, "sketch": "mean", "checksum_dim": 3},
        {"encoder": "tfidf-svd", "sketch_dims": 3, "checksum_dim": 0},
    ],
)
def test_text(build: Build, tmp_path: Path, asked: dict[str, Any]) -> None:
    source = write_messages(tmp_path / "m.tsv", 300)
    check(build(source, **SMALL | asked), messages_of(source))


documents = st.text(st.characters(exclude_categories=("Cs",)), max_size=60) | st.lists(
    st.sampled_from(["and", "win", "Now!", "so,", "late.", "(or)", "--", "to", "İstanbul", "ß", "x1", "\n", "\u2028"]),
    max_size=30,
).map(" ".join)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(documents, min_size=2, max_size=12), st.sampled_from(["tfidf-svd", "hashing-svd"]))
def test_any_text(tmp_path: Path, texts: list[str], encoder: str) -> None:
    texts = ["the first words of all", "some other words, for the training", "and yet others", *texts] * 3
    source = tmp_path / "any.jsonl"
    lines = [json.dumps({"label": "ab"[number % 2], "text": text}) for number, text in enumerate(texts)]
    source.write_text("\n".join(lines))
    report = build_capsules([str(source)], tmp_path / "any.h5", BuildConfig(encoder=encoder, **SMALL), overwrite=True)
    check(Built(report, []), texts)


def test_paragraphs(build: Build, tmp_path: Path) -> None:
    paragraphs = [f"Here is paragraph {n}, of {n * 7} words and more." for n in range(40)]
    (tmp_path / "p.txt").write_text("\n\n".join(paragraphs))
    check(build(tmp_path / "p.txt", num_concepts=4, **SMALL), paragraphs)


@pytest.mark.parametrize(
    "asked", [{}, {"encoder": "patch-pca", "dim": 5}, {"encoder": "patch-pca", "dtype": "float32"}]
)
def test_digits(build: Build, asked: dict[str, Any]) -> None:
    from sklearn.datasets import load_digits

    images = load_digits().images
    built = build("digits", **asked)
    check(built, list(images))
    with pytest.raises(DataError, match="sample 1: holds numbers outside 0 to 16"):
        RecordedEncoder.of_file(built.report.path).encode([images[0], images[0] * 16])


@pytest.mark.parametrize("encoder", ["pixels", "patch-pca"])
@pytest.mark.parametrize(("mode", "size"), [("L", None), ("RGB", None), ("RGB", 9)])
def test_picture_files(build: Build, tmp_path: Path, encoder: str, mode: str, size: int | None) -> None:
    folder = write_pictures(tmp_path / "pictures", mode=mode)
    asked = {"num_capsules": 4, "num_children": 4, "encoder": encoder, "image_size": size}
    if encoder == "patch-pca":
        asked["dim"] = 6
    built = build(folder, **asked)
    files = sorted(folder.rglob("*.png"))
    check(built, files)
    if size is None:
        from PIL import Image

        check(built, [np.asarray(Image.open(file)) for file in files])


@pytest.mark.parametrize(
    ("dtype", "top", "shape"),
    [
        ("uint8", 255, (9, 7)),
        ("uint16", 4000, (9, 7, 3)),
        ("uint8", 200, (8, 8, 2)),
        ("float32", 1, (6, 6)),
        ("float64", 0.9, (6, 6, 4)),
    ],
)
@pytest.mark.parametrize("encoder", ["pixels", "patch-pca"])
def test_arrays_of_pictures(
    build: Build, tmp_path: Path, encoder: str, dtype: str, top: float, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    images = (rng.random((60, *shape)) * top).astype(dtype)
    np.savez(tmp_path / "i.npz", images=images, labels=np.arange(60) % 2)
    asked = {"dim": 7} if encoder == "patch-pca" else {}
    built = build(tmp_path / "i.npz", kind="images", num_capsules=4, num_children=4, encoder=encoder, **asked)
    check(built, list(images))
    recorded = RecordedEncoder.of_file(built.report.path)
    eight = rng.integers(0, 256, shape).astype(np.uint8)
    # uint8 is 0 to 255, but where the source held whole numbers of another scale.
    alike = eight / (float(images.max()) if dtype == "uint16" else 255)
    if alike.max() <= 1:
        same(recorded.encode([eight]), recorded.encode([alike.astype(np.float32)]))


def test_pixels_beyond_one_are_asked_to_be_divided(build: Build, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((60, 8, 8)).astype(np.float32) * 50
    np.savez(tmp_path / "i.npz", images=images, labels=np.arange(60) % 2)
    built = build(tmp_path / "i.npz", num_capsules=4, num_children=4)
    with pytest.raises(DataError, match=r"sample 0: holds pixels outside 0 to 1 \(those of the source were divided by"):
        RecordedEncoder.of_file(built.report.path).encode(list(images))
    check(built, list((images / float(images.max())).astype(np.float32)))


def test_arc(build: Build, tmp_path: Path) -> None:
    source = write_arc(tmp_path / "a")
    tasks = json.loads(source.read_text())
    pairs = [pair for task in tasks.values() for pair in (*task["train"], *task["test"])]
    (tmp_path / "a_solutions.json").unlink()  # the test pairs have no output
    built = build(source, num_concepts=5)
    assert not built.all("mask").all()
    check(built, pairs)
    check(built, [{name: np.asarray(grid) for name, grid in pair.items()} for pair in pairs])


def test_table(build: Build, tmp_path: Path) -> None:
    source = random_table(tmp_path / "t.csv")
    header, *lines = source.read_text().splitlines()
    names = header.split(",")
    mappings = [dict(zip(names, line.split(","), strict=True)) for line in lines]
    built = build(source)
    check(built, mappings)
    check(built, [{"weight": float(m["weight"]), "age": int(m["age"]), "colour": m["colour"]} for m in mappings])
    check(built, [(np.int64(m["age"]), m["colour"], np.float64(m["weight"])) for m in mappings])
    check(built, [np.asarray([m["age"], m["colour"], m["weight"]]) for m in mappings])
    grouped = build(source, name="g.h5", groups={"who": ["weight", "colour"]}, label="label")
    check(grouped, [{"weight": m["weight"], "colour": m["colour"]} for m in mappings])


def test_every_encoder_that_can_be_chosen_is_found_again() -> None:
    """A file whose encoder is missing there trains, and then answers no raw sample."""
    assert set(choices("data.build.encoder")) - {"auto"} <= set(ENCODERS)


@pytest.mark.parametrize("dim", [8, 4])
@pytest.mark.parametrize("spelling", ["True", "TRUE", "true"])
def test_truth_values_are_those_of_the_table(build: Build, tmp_path: Path, spelling: str, dim: int) -> None:
    """However they are spelled in it. In a column of many values (dim 4) they are hashed."""
    words = [spelling, {"True": "False", "TRUE": "FALSE", "true": "false"}[spelling], "maybe", "perhaps"]
    rows: list[list[object]] = [[words[n % 4], n, "ab"[n % 2]] for n in range(60)]
    source = write_table(tmp_path / "t.csv", rows, ["on", "n", "label"])
    built = build(source, dim=dim)
    meant = {words[0]: True, words[1]: False}
    check(built, [{"on": meant.get(str(row[0]), row[0]), "n": row[1]} for row in rows])


def test_a_number_is_at_most_ten_thousand_spreads_from_the_mean(build: Build, tmp_path: Path) -> None:
    encoder = RecordedEncoder.of_file(build(random_table(tmp_path / "t.csv")).report.path)
    far = encoder.encode([(1e300, "red", 1), (-1e300, "red", 1), (20, "red", 50.0)])["children"][:, 0, 0, 0]
    assert far[:2].tolist() == [1e4, -1e4]
    assert abs(far[2]) < 10


cells = {
    "number": st.none() | st.integers(-(10**6), 10**6) | st.floats(-1e4, 1e4, width=32),
    "word": st.none() | st.text(st.characters(exclude_categories=("Cs",)), max_size=4) | st.booleans(),
    "same": st.just("s"),
    "empty": st.none(),
}
EMPTY: dict[str, Any] = {"number": None, "word": None, "same": "s", "empty": None}


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.fixed_dictionaries(cells), min_size=6, max_size=20), st.sampled_from([8, 30]))
@example([EMPTY | {"number": n} for n in (*[None] * 10, 1, None, None, 0, 1.2397287513881657e-41)], 8)  # tiny spread
@example([EMPTY | {"number": n} for n in (*[None] * 6, 65520)], 8)  # farther than all that was fitted
def test_any_table(tmp_path: Path, rows: list[dict[str, Any]], dim: int) -> None:
    rows = [row | {"id": number} for number, row in enumerate(rows)]
    source = tmp_path / "any.jsonl"
    source.write_text("\n".join(json.dumps(row | {"label": row["id"] % 2}) for row in rows))
    config = BuildConfig(kind="table", dim=dim, label="label", validation=0.2, test=0.2)
    report = build_capsules([str(source)], tmp_path / "any.h5", config, overwrite=True)
    check(Built(report, []), rows)


@pytest.mark.parametrize(
    "names",
    [
        ("children",),
        ("sketches",),
        ("sketches", "children", "parents"),
        ("sketches", "checksums"),
        ("children", "parents", "mask"),
        ("sketches", "mask"),
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_arrays(build: Build, tmp_path: Path, names: tuple[str, ...], dtype: str) -> None:
    rng = np.random.default_rng(0)
    n, k, m, dim = 40, 3, 2, 5
    shapes = {"children": (n, k, m, dim), "sketches": (n, k, dim), "checksums": (n, k, 4)}
    arrays = {name: rng.standard_normal(shapes[name]).astype(dtype) for name in names if name in shapes}
    if "parents" in names:
        arrays["parents"] = np.tile([-1, 0, 1], (n, 1))
    if "mask" in names:
        arrays["mask"] = np.arange(3) < rng.integers(1, 4, (n, 1))
    for labels in (np.arange(n) % 3, np.arange(n * k).reshape(n, k) % 3):
        np.savez(tmp_path / "a.npz", labels=labels, **arrays)
        built = build(tmp_path / "a.npz", name=f"{labels.ndim}.h5")
        check(built, [{name: array[row] for name, array in arrays.items()} for row in range(n)])


def test_legacy(build: Build, tmp_path: Path) -> None:
    import torch

    children = torch.randn(40, 3, 2, 5)
    torch.save({"sketches": children.mean(2), "children": children, "labels": torch.arange(40) % 2}, tmp_path / "l.pt")
    samples = [{"sketches": row.mean(1).numpy(), "children": row.numpy()} for row in children]
    sketches = children.mean(2).numpy()
    samples = [sample | {"sketches": sketches[row]} for row, sample in enumerate(samples)]
    check(build(tmp_path / "l.pt"), samples)


def test_several_kinds_in_one_file(build: Build, tmp_path: Path) -> None:
    table = random_table(tmp_path / "t.csv", 40)
    messages = write_messages(tmp_path / "m.tsv", 50)
    built = build(table, messages, num_children=2, dim=16)
    assert RecordedEncoder.of_file(built.report.path).kinds == ("table", "text")
    check(built, messages_of(messages), "text", np.arange(40, 90))
    rows = [line.split(",")[:3] for line in table.read_text().splitlines()[1:]]
    check(built, rows, "table", np.arange(40))
    encoder = RecordedEncoder.of_file(built.report.path)
    with pytest.raises(DataError, match="samples of which kind"):
        encoder.encode(["a"])
    with pytest.raises(DataError, match="there is no encoder of 'arc'; there are table, text"):
        encoder.encode(["a"], "arc")


@pytest.mark.slow
def test_sentences_of_a_pretrained_model(build: Build, tmp_path: Path, minilm: str) -> None:  # noqa: F811
    source = write_messages(tmp_path / "m.tsv", 40)
    there = tmp_path / "there"
    shutil.copytree(minilm, there)
    for dim in ("auto", 8):
        asked = {"encoder": "sentence-transformers", "num_capsules": 3, "num_children": 2, "dim": dim}
        built = build(source, name=f"{dim}.h5", encoder_model=str(there), dtype="float32", **asked)
        moved = RecordedEncoder.of_file(built.report.path, encoder_model=minilm)
        for encoder in (RecordedEncoder.of_file(built.report.path), moved):
            fields = encoder.encode(messages_of(source))
            # What else is in a batch may move the last bits.
            assert np.allclose(fields["children"], built.by_id("children"), atol=1e-4)
            assert np.array_equal(fields["parents"], built.by_id("parents"))
    shutil.rmtree(there)
    with pytest.raises(DataError, match=r"the recorded encoder sentence-transformers cannot be made: .*no such file"):
        RecordedEncoder.of_file(built.report.path)


def load_mean(spec: ModelSpec, device: str) -> Loaded:
    """A stand-in for a vision model: each crop's mean times six weights that stand in a file."""
    import torch

    assert spec.path is not None
    module = torch.nn.Linear(1, 6, bias=False)
    module.weight.data.fill_(float(spec.path.read_text()))
    return Loaded(module, lambda crops: crops.mean((1, 2, 3))[:, None] @ module.weight.detach().numpy().T)


@pytest.mark.parametrize("dim", ["auto", 2])
def test_pictures_of_a_pretrained_model(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dim: int | str
) -> None:
    from trm_core.data.build import encode_pretrained_images

    monkeypatch.setitem(encode_pretrained_images._LOADERS, "timm", load_mean)
    for name, weight in (("a", "3"), ("b", "3"), ("c", "4")):
        (tmp_path / f"{name}.safetensors").write_text(weight)
    folder = write_pictures(tmp_path / "p")
    asked = {"encoder": "timm", "num_capsules": 4, "num_children": 4, "dim": dim}
    built = build(folder, encoder_model=f"net:{tmp_path / 'a.safetensors'}", **asked)
    files = sorted(folder.rglob("*.png"))
    check(built, files)
    (tmp_path / "a.safetensors").unlink()
    path, there = built.report.path, tmp_path / "b.safetensors"
    moved = RecordedEncoder.of_file(path, encoder_model=f"net:{there}")
    same(moved.encode(files), {name: built.by_id(name) for name in FIELDS if name in built.splits["train"]})
    with pytest.raises(DataError, match=r"a\.safetensors: no such file") as caught:
        RecordedEncoder.of_file(path)
    assert "encoder_model" in str(caught.value.hint)
    with pytest.raises(DataError, match="the model's weights differ from those used in the build"):
        RecordedEncoder.of_file(path, encoder_model=f"net:{tmp_path / 'c.safetensors'}")
    text = build(write_messages(tmp_path / "m.tsv", 60), name="m.h5", **SMALL)
    with pytest.raises(DataError, match="it has 0 pretrained encoders"):
        RecordedEncoder.of_file(text.report.path, encoder_model="x")


def test_it_needs_no_torch(build: Build, tmp_path: Path) -> None:
    built = build(write_messages(tmp_path / "m.tsv", 60), **SMALL)
    code = (
        "import sys; from trm_core.data.recorded_encoder import RecordedEncoder;"
        "RecordedEncoder.of_file(sys.argv[1]).encode(['a few words']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(built.report.path)], check=True)


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> BuiltOnce:
    """A file of a kind, and a sample that it could hold."""

    @functools.cache
    def of_kind(kind: str) -> tuple[Path, Any]:
        folder, good = tmp_path_factory.mktemp(kind), GOOD[kind]
        if kind == "text":
            source = write_messages(folder / "m.tsv", 60)
        elif kind == "images":
            source = write_pictures(folder / "p")
        elif kind == "digits":
            source = Path("digits")
        elif kind == "arc":
            source = write_arc(folder / "a")
        elif kind == "table":
            source = random_table(folder / "t.csv")
        else:
            source = folder / "a.npz"
            np.savez(source, children=np.random.default_rng(0).random((30, 3, 2, 5)), labels=np.arange(30) % 2)
        return build_capsules([str(source)], folder / "out.h5", BuildConfig()).path, good

    return of_kind


GOOD: dict[str, Any] = {
    "text": "some words",
    "images": np.zeros((12, 12), np.uint8),
    "digits": np.zeros((8, 8)),
    "arc": {"input": [[1]], "output": [[2]]},
    "table": (20, "red", 50.0),
    "arrays": {"children": np.ones((3, 2, 5))},
}


@pytest.mark.parametrize(
    ("kind", "bad", "message"),
    [
        ("text", 7, r"sample 2: expected a text \(str\), got int"),
        ("text", "\ud800", "sample 2: holds half of a surrogate pair"),
        ("images", "nothing.png", "sample 2: nothing.png: cannot be decoded"),
        ("images", np.zeros((5, 5)), r"sample 2: has shape \[5, 5, 1\]; expected a picture of 12 x 12 with 1"),
        ("images", np.full((12, 12), np.nan), "sample 2: holds pixels outside 0 to 1$"),
        ("images", np.zeros((12, 12), np.int64), "sample 2: has dtype int64; expected uint8"),
        ("images", [[1]], "sample 2: expected an array of numbers of 12 x 12"),
        ("digits", [[1, 2], [3]], r"sample 2: expected an array \[8, 8\] of numbers from 0 to 16, got list"),
        ("digits", [[10**400] * 8] * 8, "sample 2: expected an array"),
        ("arc", [[1]], "sample 2: expected a mapping"),
        ("arc", {"input": [[1], [1, 2]]}, "sample 2: input: is not rectangular"),
        ("arc", {"input": [[1]], "output": [[11]]}, "sample 2: output: holds 11"),
        ("table", {"age": 1, "colour": "red"}, "sample 2: has no column 'weight'; expected age, colour, weight"),
        ("table", (1, 2), "sample 2: has 2 values; expected 3"),
        ("table", {"age": "old", "colour": "red", "weight": 1}, "sample 2: column 'age': expected a number, got 'old'"),
        ("table", {"age": float("inf"), "colour": "", "weight": 1}, "sample 2: column 'age': expected a number"),
        ("table", {"age": [1], "colour": "", "weight": 1}, "sample 2: column 'age': expected a text or a number"),
        ("table", "1,red,3", "sample 2: expected a mapping of column names"),
        ("arrays", {"sketches": np.zeros((2, 2))}, "sample 2: has no children"),
        ("arrays", {"children": np.zeros((3, 2, 4))}, r"sample 2: children is float64 \[3, 2, 4\]"),
        ("arrays", {"children": np.full((3, 2, 5), np.inf)}, "sample 2: children holds NaN"),
        ("arrays", {"children": [[1], [1, 2]]}, "sample 2: children is"),
        ("arrays", {"children": np.full((3, 2, 5), 1e9)}, "sample 2: sketches reach 1e\\+09"),
    ],
)
def test_bad_samples_are_named(built_once: BuiltOnce, kind: str, bad: Any, message: str) -> None:
    path, good = built_once(kind)
    encoder = RecordedEncoder.of_file(path)
    assert len(encoder.encode([good, good])["sketches"]) == 2
    with pytest.raises(DataError, match=message):
        encoder.encode([good, good, bad, good])
    with pytest.raises(DataError, match="no samples"):
        encoder.encode([])


# --- files of an earlier version, damaged and hostile ones ---


def test_files_without_an_encoder_still_open(tmp_path: Path) -> None:
    path = tmp_path / "old.h5"
    with CapsuleWriter(path, num_capsules=2, dim=3, label_rank=1) as writer:
        rng = np.random.default_rng(0)
        writer.append("train", {"sketches": rng.random((4, 2, 3)), "labels": np.arange(4) % 2})
        writer.close({"encoders": [{"kind": "text"}], "encoder_hashes": {"0/x": "copied from another file"}})
    with h5py.File(path) as h5:
        assert int(h5.attrs["schema_version"]) == 1  # versions that know no encoders read it too
    with open_capsules(path) as file:
        assert file.verify() == []
        assert "encoders" not in file.manifest
    with pytest.raises(DataError, match="does not hold the encoder") as caught:
        RecordedEncoder.of_file(path)
    assert "build the file again" in str(caught.value.hint)
    with pytest.raises(DataError, match=r"preprocessing.json: no such file"):
        RecordedEncoder.of_folder(tmp_path)


def test_files_with_an_encoder_are_refused_by_readers_that_do_not_know_it(build: Build, tmp_path: Path) -> None:
    built = build(write_messages(tmp_path / "m.tsv", 60), **SMALL)
    with h5py.File(built.report.path) as h5:
        assert int(h5.attrs["schema_version"]) == 2
        assert sorted(h5["encoders/0"]) == sorted(
            ["components", "scale", "kept", "word_terms", "word_idf", "character_terms", "character_idf"]
        )
        for dataset in h5["encoders/0"].values():
            assert dataset.fletcher32


def test_builds_hold_the_same_encoder_again_and_their_content_hash_is_of_the_rows(build: Build, tmp_path: Path) -> None:
    source = write_messages(tmp_path / "m.tsv", 300)
    one, two = (build(source, name=f"{n}.h5", workers=n, **SMALL).manifest for n in (0, 1))
    for key in ("encoders", "encoder_hashes", "content_hash"):
        assert one[key] == two[key]
    assert not any(name.startswith("encoders") for name in one["dataset_hashes"])


def edit(path: Path, change: Any) -> None:
    """Change the manifest of a file as somebody would who knows how it is protected."""
    with h5py.File(path, "r+") as h5:
        manifest = json.loads(bytes(h5.attrs["manifest"]))
        change(manifest, h5)
        tiny.set_text(h5, "manifest", json.dumps(manifest))


def swap(h5: h5py.File, name: str, **how: Any) -> Any:
    del h5[name]
    return h5.create_dataset(name, **how)


def forged(manifest: dict[str, Any], h5: h5py.File, name: str, values: np.ndarray) -> None:
    """An array of another content, with the hash that belongs to it."""
    from trm_core.data.store.encoder_arrays import array_hash, stored_array

    key = name.removeprefix("encoders/")
    if name in h5:
        del h5[name]
    h5.create_dataset(name, data=np.atleast_1d(values), chunks=np.atleast_1d(values).shape, fletcher32=True)
    manifest["encoder_hashes"][key] = array_hash(stored_array(values))


def spec_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["encoders"][0]["spec"]


ATTACKS: list[tuple[Any, str]] = [
    (lambda m, h5: m["encoders"].clear(), "it has no proper list of encoders"),
    (lambda m, h5: m.update(encoders={"0": 1}), "it has no proper list of encoders"),
    (lambda m, h5: m.update(encoders=[3]), "it has no proper list of encoders"),
    (lambda m, h5: m["encoders"][0].update(name="os.system"), "the encoder 'os.system' is not known; there are pixels"),
    (lambda m, h5: m["encoders"][0].update(name=["x"]), "name is .*; expected a text"),
    (
        lambda m, h5: m["encoders"][0].update(name="hashing-svd"),
        "expected float32 .any, 131072.|that this encoder does",
    ),
    (lambda m, h5: m["encoders"][0].update(kind="arc"), "the encoder tfidf-svd is not one of arc"),
    (lambda m, h5: m["encoders"][0].update(kind="smells"), "the kind 'smells' is not known"),
    (lambda m, h5: m["encoders"][0].update(more=1), "unknown setting 'more'"),
    (lambda m, h5: m["encoders"][0].update(spec=None), "has no num_capsules|not a JSON object"),
    (lambda m, h5: m["encoders"].append(m["encoders"][0]), "the array components is missing|is missing"),
    (lambda m, h5: spec_of(m).update(num_capsules=10**9), "num_capsules is 1000000000; expected a whole number"),
    (lambda m, h5: spec_of(m).update(dim=True), "dim is True"),
    (lambda m, h5: spec_of(m).update(dim=8), "more than the 8 of dim"),
    (lambda m, h5: spec_of(m).update(num_capsules=5), "has num_capsules=5, its layout 4"),
    (lambda m, h5: spec_of(m).update(code="import os"), "unknown setting 'code'"),
    (lambda m, h5: m["encoders"][0]["layout"].update(dim=17), "has dim=17, the file 16"),
    (lambda m, h5: m["encoders"][0]["layout"].update(checksum_seed=3), "has checksum_seed=3, the file 0"),
    (lambda m, h5: m["encoders"][0]["layout"].update(sketch="eval"), "sketch is 'eval'; expected mean"),
    (lambda m, h5: m["encoders"][0]["layout"].update(num_capsules=1 << 26), "beyond any that is built"),
    (lambda m, h5: m["encoders"][0]["samples"].update(scale=1), "unknown setting 'scale'"),
    (lambda m, h5: m.update(encoder_hashes=None), "sha256 differs"),
    (lambda m, h5: h5["encoders/0/components"].__setitem__((0, 0), 9.0), r"encoders/0/components: .*sha256 differs"),
    (lambda m, h5: h5.__delitem__("encoders/0/scale"), r"encoders/0/scale: .*sha256 differs"),
    (lambda m, h5: h5.__delitem__("encoders"), "sha256 differs"),
    (lambda m, h5: forged(m, h5, "encoders/0/scale", np.float32(np.nan)), "array scale holds NaN"),
    (lambda m, h5: forged(m, h5, "encoders/0/scale", np.float64(1)), "array scale is float64"),
    (lambda m, h5: forged(m, h5, "encoders/0/more", np.ones(3)), "'more' that this encoder does not have"),
    (lambda m, h5: forged(m, h5, "encoders/7/scale", np.ones(3)), "'7/scale' belongs to no encoder"),
    (lambda m, h5: forged(m, h5, "encoders/0/word_terms", np.full(9, 255, np.uint8)), "is not UTF-8"),
    (lambda m, h5: forged(m, h5, "encoders/0/word_terms", np.full(9, 10, np.uint8)), "different terms"),
    (lambda m, h5: forged(m, h5, "encoders/0/word_idf", np.ones(3)), "array word_idf is float64"),
    (lambda m, h5: forged(m, h5, "encoders/0/components", np.ones((2, 3), np.float32)), "array components is float32"),
    (lambda m, h5: h5.create_dataset("encoders/0/UP", data=np.ones(3)), "unexpected 'UP' in 'encoders'"),
    (lambda m, h5: h5.create_dataset("encoders/x/a", data=np.ones(3)), "unexpected 'x' in 'encoders'"),
    (lambda m, h5: h5.create_dataset("encoders/0/a", data=np.ones(3, "S4")), "encoders/0/a has dtype"),
    (lambda m, h5: h5.create_dataset("encoders/0/a", data=np.ones((1, 1, 1))), "has rank 3"),
    (
        lambda m, h5: h5.create_dataset("encoders/0/a", shape=(0,), chunks=(3,), maxshape=(None,), dtype="f4"),
        "encoders/0/a is empty",
    ),
    (lambda m, h5: h5.create_dataset("encoders/0/a", shape=(10**12,), dtype="f4"), "claims 4000000000000 bytes"),
    (
        lambda m, h5: h5.create_dataset("encoders/0/a", shape=(1 << 30,), dtype="f8", chunks=(1 << 20,), compression=9),
        "claims 8589934592 bytes",
    ),
    (lambda m, h5: h5.__setitem__("encoders/0/a", h5py.SoftLink("/train/labels")), "is a soft or external link"),
    (lambda m, h5: h5.__setitem__("encoders/0/a", h5py.ExternalLink("x.h5", "/a")), "is a soft or external link"),
    (lambda m, h5: h5.__setitem__("encoders/0/a", h5["train/labels"]), "is the same object as another entry"),
    (lambda m, h5: h5.__setitem__("encoders/1", h5["encoders"]), "is the same object as another entry"),
    (lambda m, h5: h5.create_group("encoders/0/a"), "'a' is not a dataset"),
    (lambda m, h5: swap(h5, "encoders", data=np.ones(3)), "'encoders' is not a group"),
]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    source = write_messages(folder / "m.tsv", 60)
    build_capsules([str(source)], folder / "m.h5", BuildConfig(**SMALL))
    return folder / "m.h5"


@pytest.mark.parametrize(("attack", "message"), ATTACKS)
def test_hostile_files_are_refused(text_file: Path, tmp_path: Path, attack: Any, message: str) -> None:
    path = Path(shutil.copy(text_file, tmp_path / "bad.h5"))
    edit(path, attack)
    quarantine.trust(path)  # the guard then looks at it here: the same one, without a process for each file
    with pytest.raises(DataError, match=message) as caught:
        RecordedEncoder.of_file(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_damaged_arrays_are_found_by_verify_and_by_every_reader(text_file: Path, tmp_path: Path) -> None:
    with h5py.File(text_file) as h5:
        chunk = h5["encoders/0/components"].id.get_chunk_info(0)
    data = bytearray(text_file.read_bytes())
    data[chunk.byte_offset + 5] ^= 8
    path = tmp_path / "flipped.h5"
    path.write_bytes(data)
    with pytest.raises(DataError, match="encoders/0/components cannot be read"):
        RecordedEncoder.of_file(path)
    rewritten = Path(shutil.copy(text_file, tmp_path / "rewritten.h5"))
    with h5py.File(rewritten, "r+") as h5:
        h5["encoders/0/components"][0, 0] += 1
    with open_capsules(rewritten) as file:
        assert [(problem.kind, problem.dataset) for problem in file.verify()] == [
            ("hash-mismatch", "encoders/0/components")
        ]


def document_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / DOCUMENT).read_text()))


def test_damaged_folders_are_refused(text_file: Path, tmp_path: Path) -> None:
    from trm_core.data.preprocessing_folder import _document_hash

    whole = tmp_path / "whole"
    RecordedEncoder.of_file(text_file).save(whole)

    def refused(message: str, change: Any) -> None:
        folder = tmp_path / "bad"
        shutil.copytree(whole, folder)
        change(folder)
        with pytest.raises(DataError, match=message) as caught:
            RecordedEncoder.of_folder(folder)
        assert caught.value.hint
        shutil.rmtree(folder)

    def rewritten(**keys: Any) -> Any:
        def change(folder: Path) -> None:
            document = document_of(folder) | keys
            (folder / DOCUMENT).write_text(json.dumps(document | {"sha256": _document_hash(document)}))

        return change

    def arrays(**others: np.ndarray) -> Any:
        return lambda folder: save_file(load_file(folder / ARRAYS) | others, folder / ARRAYS)

    refused("no such file", lambda folder: (folder / ARRAYS).unlink())
    refused("no such file", lambda folder: (folder / DOCUMENT).unlink())
    refused("is not JSON", lambda folder: (folder / DOCUMENT).write_text("[" * 100_000))
    refused("is not JSON", lambda folder: (folder / DOCUMENT).write_bytes(b"\xff\xfe"))
    refused("no format", lambda folder: (folder / DOCUMENT).write_text("[1]"))
    refused("sha256 differs", lambda f: (f / DOCUMENT).write_text(json.dumps(document_of(f) | {"encoders": []})))
    refused("it has no proper list of encoders", rewritten(encoders=[]))
    refused("is not a list", rewritten(encoders=None))
    refused("has schema version 2", rewritten(schema_version=2))
    refused("sha256 differs", rewritten(encoder_hashes={}))
    refused("sha256 differs", arrays(**{"0/scale": np.ones(1, np.float32)}))
    refused("sha256 differs", arrays(**{"0/more": np.ones(1, np.float32)}))
    refused("is float16", arrays(**{"0/scale": np.ones(1, np.float16)}))
    refused("is damaged", lambda f: (f / ARRAYS).write_bytes((f / ARRAYS).read_bytes()[:-100]))
    refused("has a header of over", lambda f: (f / ARRAYS).write_bytes(b"\xff" * 100))
    refused("is damaged", lambda f: (f / ARRAYS).write_bytes(b""))


def test_a_save_over_another_one(text_file: Path, build: Build, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    RecordedEncoder.of_file(text_file).save(folder)
    RecordedEncoder.of_file(build("digits").report.path).save(folder)
    assert RecordedEncoder.of_folder(folder).kinds == ("digits",)
    assert sorted(path.name for path in folder.iterdir()) == [DOCUMENT, ARRAYS]
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        RecordedEncoder.of_file(text_file).save(tmp_path / "file")


def test_the_writer_refuses_more_than_is_ever_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trm_core.data.store import encoder_arrays

    monkeypatch.setattr(encoder_arrays, "MAX_BYTES", 100)
    record = EncoderRecord({"kind": "text"}, {"components": np.ones((10, 10), np.float32)})
    writer = CapsuleWriter(tmp_path / "x.h5", num_capsules=1, dim=1, label_rank=0, encoders=[record])
    writer.append("train", {"sketches": np.ones((2, 1, 1))})
    with pytest.raises(DataError, match="have 400 bytes; at most 100"):
        writer.close({})
    assert not list(tmp_path.iterdir())
