"""Files that must be refused before anything of them is read: one line, naming file, dataset and mend."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny

from trm_core.data.store import open_capsules, quarantine
from trm_core.data.store.guard import inspect_structure
from trm_core.errors import DataError, ExitCode, StoppedEarly

Attack = Callable[[h5py.File, Path], None]
ATTACKS: dict[str, tuple[Attack, str]] = {}


def attack(message: str) -> Callable[[Attack], Attack]:
    """Register a change to an honest file (train: 100 rows, test: 30; k=3, m=2, D=4, R=5) and the refusal expected."""

    def register(change: Attack) -> Attack:
        ATTACKS[change.__name__] = (change, message)
        return change

    return register


def swap(h5: h5py.File, name: str, **options: object) -> h5py.Dataset:
    """Replace a dataset by another of that name."""
    del h5[name]
    return h5.create_dataset(name, **options)


# --- other files ---


@attack("'train/sketches' is a soft or external link")
def external_link(h5: h5py.File, folder: Path) -> None:
    del h5["train/sketches"]
    h5["train/sketches"] = h5py.ExternalLink(str(folder / "secret.h5"), "/data")


@attack("'/test' is a soft or external link")
def external_link_for_a_split(h5: h5py.File, folder: Path) -> None:
    del h5["test"]
    h5["test"] = h5py.ExternalLink(str(folder / "secret.h5"), "/")


@attack("'train/children' is a soft or external link")
def soft_link(h5: h5py.File, folder: Path) -> None:
    h5.move("train/children", "test/elsewhere")
    h5["train/children"] = h5py.SoftLink("/test/elsewhere")


@attack("'train/labels' is a soft or external link")
def soft_link_circle(h5: h5py.File, folder: Path) -> None:
    del h5["train/labels"]
    h5["train/labels"] = h5py.SoftLink("/train/labels")


@attack("train/sketches keeps its data in another file")
def external_storage(h5: h5py.File, folder: Path) -> None:
    secret = folder / "secret.bin"
    secret.write_bytes(bytes(100 * 3 * 4 * 2))
    swap(h5, "train/sketches", shape=(100, 3, 4), dtype="f2", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


@attack("train/sketches is a virtual dataset")
def virtual_dataset(h5: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout(shape=(100, 3, 4), dtype="f2")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "data", shape=(100, 3, 4))
    del h5["train/sketches"]
    h5.create_virtual_dataset("train/sketches", layout)


# --- circles and things that are something else ---


@attack("unexpected 'train/loop'")
def hard_link_circle(h5: h5py.File, folder: Path) -> None:
    h5["train/loop"] = h5["/"]


@attack("'validation' is the same object as another entry")
def split_twice(h5: h5py.File, folder: Path) -> None:
    h5["validation"] = h5["train"]


@attack("unexpected '.*' in it|same object")
def split_is_the_root(h5: h5py.File, folder: Path) -> None:
    h5["validation"] = h5["/"]


@attack("'labels' is the same object as another entry")
def dataset_twice(h5: h5py.File, folder: Path) -> None:
    del h5["test/labels"]
    h5["test/labels"] = h5["train/labels"]


@attack("'sketches' is not a dataset")
def group_for_dataset(h5: h5py.File, folder: Path) -> None:
    del h5["train/sketches"]
    h5.create_group("train/sketches/deeper")


@attack("'sketches' is not a dataset")
def type_for_dataset(h5: h5py.File, folder: Path) -> None:
    del h5["train/sketches"]
    h5["train/sketches"] = np.dtype("f4")


@attack("'test' is not a group")
def dataset_for_group(h5: h5py.File, folder: Path) -> None:
    swap(h5, "test", data=np.ones(3, "f4"))


@attack("'/train' holds 100008 entries")
def many_links(h5: h5py.File, folder: Path) -> None:
    group = h5["train"]
    target = h5["train/labels"].id
    for index in range(100_000):
        group.id.links.create_soft(f"x{index}".encode(), b"labels")
    assert target.valid


@attack("unexpected '/extra'")
def unexpected_split(h5: h5py.File, folder: Path) -> None:
    h5.create_group("extra")


@attack("unexpected 'train/extra'")
def unexpected_field(h5: h5py.File, folder: Path) -> None:
    h5["train/extra"] = np.ones(100)


# --- sizes that lie ---


@attack("train/sketches claims 140000000000000 bytes of data but 0 are stored")
def petabyte_claim(h5: h5py.File, folder: Path) -> None:
    swap(h5, "train/sketches", shape=(10**10, 1000, 7), dtype="f2")


@attack("train/sketches claims 140000000000000 bytes of data but 0 are stored")
def petabyte_claim_in_chunks(h5: h5py.File, folder: Path) -> None:
    swap(h5, "train/sketches", shape=(10**10, 1000, 7), dtype="f2", chunks=(1, 1000, 7))


@attack("train/sketches claims 140000000000000 bytes of data but 0 are stored")
def petabyte_claim_in_gzip(h5: h5py.File, folder: Path) -> None:
    swap(h5, "train/sketches", shape=(10**10, 1000, 7), dtype="f2", chunks=(1, 1000, 7), compression="gzip")


@attack(r"train/sketches claims 80000000 bytes of data but \d+ are stored")
def inflating_gzip(h5: h5py.File, folder: Path) -> None:
    data = np.zeros((1000, 200, 200), "f2")
    swap(h5, "train/sketches", data=data, chunks=(100, 200, 200), compression="gzip", shuffle=True)


@attack("train/sketches has chunks of 800000000 bytes")
def enormous_chunk(h5: h5py.File, folder: Path) -> None:
    swap(h5, "train/sketches", shape=(100, 3, 4), maxshape=(None, None, None), chunks=(10_000, 200, 200), dtype="f2")


@attack("train/sketches claims 2400 bytes of data but 1536 are stored")
def missing_chunks(h5: h5py.File, folder: Path) -> None:
    """What a writer leaves that was killed between resizing and writing."""
    dataset = swap(h5, "train/sketches", shape=(100, 3, 4), chunks=(64, 3, 4), dtype="f2")
    dataset[:64] = 1


@attack("train/sketches is compressed with HDF5 filter 6")
def unknown_filter(h5: h5py.File, folder: Path) -> None:
    swap(h5, "train/sketches", data=np.ones((100, 3, 4), "f4"), chunks=(64, 3, 4), scaleoffset=2)


@attack("train/sketches is compressed with HDF5 filter 32015")
def filter_of_a_plugin(h5: h5py.File, folder: Path) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((64, 3, 4))
    properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (1,))
    del h5["train/sketches"]
    space = h5py.h5s.create_simple((100, 3, 4))
    h5py.h5d.create(h5["train"].id, b"sketches", h5py.h5t.IEEE_F16LE, space, properties)


# --- types and ranks ---


@attack("train/labels has dtype object; expected int64")
def variable_length_strings(h5: h5py.File, folder: Path) -> None:
    swap(h5, "train/labels", data=["x"] * 100, dtype=h5py.string_dtype())


@attack("train/labels has dtype object; expected int64")
def variable_length_arrays(h5: h5py.File, folder: Path) -> None:
    swap(h5, "train/labels", shape=(100,), dtype=h5py.vlen_dtype(np.int64))


@attack("train/labels has dtype object; expected int64")
def references(h5: h5py.File, folder: Path) -> None:
    swap(h5, "train/labels", data=[h5["train"].ref] * 100, dtype=h5py.ref_dtype)


@attack("train/labels has dtype .*; expected int64")
def compound(h5: h5py.File, folder: Path) -> None:
    swap(h5, "train/labels", data=np.zeros(100, [("a", "i4"), ("b", "i4")]))


@attack("train/sketches has dtype >f4; expected float16 or float32")
def big_endian(h5: h5py.File, folder: Path) -> None:
    swap(h5, "train/sketches", data=np.ones((100, 3, 4), ">f4"))


@attack("train/sketches has dtype float64; expected float16 or float32")
def double_precision(h5: h5py.File, folder: Path) -> None:
    swap(h5, "train/sketches", data=np.ones((100, 3, 4)))


@attack("train/mask has dtype int8; expected bool")
def enumeration(h5: h5py.File, folder: Path) -> None:
    dtype = h5py.enum_dtype({"YES": 1, "NO": 0}, basetype="i1")
    swap(h5, "train/mask", data=np.ones((100, 3), "i1"), dtype=dtype)


@attack("train/sketches has rank 2; expected 3")
def wrong_rank(h5: h5py.File, folder: Path) -> None:
    swap(h5, "train/sketches", data=np.ones((100, 12), "f2"))


@attack("train/labels has rank 0; expected 1 or 2")
def null_space(h5: h5py.File, folder: Path) -> None:
    swap(h5, "train/labels", data=h5py.Empty("i8"))


# --- shapes that disagree ---


@attack("train/children has k = 4 where train/sketches has k = 3")
def other_k(h5: h5py.File, folder: Path) -> None:
    swap(h5, "train/children", data=np.ones((100, 4, 2, 4), "f2"))


@attack("train/children has D = 6 where train/sketches has D = 4")
def other_dim(h5: h5py.File, folder: Path) -> None:
    swap(h5, "train/children", data=np.ones((100, 3, 2, 6), "f2"))


@attack("test/children has m = 3 where train/children has m = 2")
def other_m(h5: h5py.File, folder: Path) -> None:
    swap(h5, "test/children", data=np.ones((30, 3, 3, 4), "f2"))


@attack("test/checksums has R = 1 where train/checksums has R = 5")
def other_width(h5: h5py.File, folder: Path) -> None:
    swap(h5, "test/checksums", data=np.ones((30, 3, 1), "f2"))


@attack("train/labels has N = 99 where train/sketches has N = 100")
def other_rows(h5: h5py.File, folder: Path) -> None:
    swap(h5, "train/labels", data=np.ones(99, "i8"))


@attack("test/labels and train/labels differ in rank")
def other_label_rank(h5: h5py.File, folder: Path) -> None:
    swap(h5, "test/labels", data=np.ones((30, 3), "i8"))


@attack("test has the fields .* but train has")
def other_fields(h5: h5py.File, folder: Path) -> None:
    del h5["test/children"]


@attack("train/children has m = 0; at least 1")
def no_children(h5: h5py.File, folder: Path) -> None:
    swap(h5, "train/children", data=np.ones((100, 3, 0, 4), "f2"))


@attack("train/sketches has k = 0; at least 1")
def no_capsules(h5: h5py.File, folder: Path) -> None:
    swap(h5, "train/sketches", data=np.ones((100, 0, 4), "f2"))


@attack("train/sketches has D = 0; at least 1")
def no_width(h5: h5py.File, folder: Path) -> None:
    swap(h5, "train/sketches", data=np.ones((100, 3, 0), "f2"))


@attack("train/sketches has N = 0; at least 1")
def no_rows(h5: h5py.File, folder: Path) -> None:
    swap(h5, "train/sketches", data=np.ones((0, 3, 4), "f2"))


@attack("prices has k = 4 where train/sketches has k = 3")
def other_prices(h5: h5py.File, folder: Path) -> None:
    swap(h5, "prices", data=np.ones(4, "f4"))


@attack("train has no sketches")
def no_sketches(h5: h5py.File, folder: Path) -> None:
    del h5["train/sketches"]


@attack("has none of the splits")
def no_splits(h5: h5py.File, folder: Path) -> None:
    del h5["train"], h5["test"]


@attack("says it has {'train': 100, 'test': 30} rows but holds {'train': 100}")
def split_missing(h5: h5py.File, folder: Path) -> None:
    del h5["test"]


# --- attributes ---


@attack("is HDF5, but not a capsule file")
def foreign(h5: h5py.File, folder: Path) -> None:
    del h5.attrs["format"]


@attack("is HDF5, but not a capsule file")
def other_format(h5: h5py.File, folder: Path) -> None:
    tiny.set_text(h5, "format", "spectrograms")


@attack("has schema version 3; this version of trm reads up to 2")
def newer(h5: h5py.File, folder: Path) -> None:
    h5.attrs["schema_version"] = 3


@attack("has schema version 0")
def older_than_the_first(h5: h5py.File, folder: Path) -> None:
    h5.attrs["schema_version"] = 0


@attack("attribute schema_version is not one number")
def version_as_text(h5: h5py.File, folder: Path) -> None:
    tiny.set_text(h5, "schema_version", "1")


@attack("is incomplete")
def not_complete(h5: h5py.File, folder: Path) -> None:
    h5.attrs["complete"] = False


@attack("is incomplete")
def complete_missing(h5: h5py.File, folder: Path) -> None:
    del h5.attrs["complete"]


@attack("attribute complete is not one number")
def complete_is_an_array(h5: h5py.File, folder: Path) -> None:
    h5.attrs["complete"] = np.ones(3, bool)


@attack("has no attribute manifest")
def manifest_missing(h5: h5py.File, folder: Path) -> None:
    del h5.attrs["manifest"]


@attack("attribute manifest is not JSON")
def manifest_nonsense(h5: h5py.File, folder: Path) -> None:
    tiny.set_text(h5, "manifest", "{")


@attack("attribute manifest is not JSON")
def manifest_deep(h5: h5py.File, folder: Path) -> None:
    tiny.set_text(h5, "manifest", "[" * 1_000_000)


@attack("attribute manifest is not UTF-8")
def manifest_bytes(h5: h5py.File, folder: Path) -> None:
    tiny.set_text(h5, "manifest", b"\xff\xfe")


@attack("attribute manifest is not a JSON object")
def manifest_list(h5: h5py.File, folder: Path) -> None:
    tiny.set_text(h5, "manifest", "[1]")


@attack("attribute manifest has 20000000 bytes; at most 16777216")
def manifest_enormous(h5: h5py.File, folder: Path) -> None:
    tiny.set_text(h5, "manifest", " " * 20_000_000)


@attack("attribute manifest is not one text of fixed length")
def manifest_of_variable_length(h5: h5py.File, folder: Path) -> None:
    h5.attrs["manifest"] = "{}"


@attack("attribute manifest is not one text of fixed length")
def manifest_numbers(h5: h5py.File, folder: Path) -> None:
    h5.attrs["manifest"] = np.ones(4)


@attack("manifest: num_classes is 'many'")
def manifest_classes(h5: h5py.File, folder: Path) -> None:
    tiny.set_text(h5, "manifest", json.dumps({"num_classes": "many"}))


@attack("manifest: task is 'conquest'")
def manifest_task(h5: h5py.File, folder: Path) -> None:
    tiny.set_text(h5, "manifest", json.dumps({"task": "conquest"}))


@attack("manifest: class_names is not a list of texts")
def manifest_names(h5: h5py.File, folder: Path) -> None:
    tiny.set_text(h5, "manifest", json.dumps({"class_names": [1]}))


@attack("attribute rows says 'train': -1")
def rows_negative(h5: h5py.File, folder: Path) -> None:
    tiny.set_text(h5, "rows", json.dumps({"train": -1}))


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_file_is_refused(name: str, capsule_path: Path, tmp_path: Path) -> None:
    change, message = ATTACKS[name]
    with h5py.File(tmp_path / "secret.h5", "w") as secret:
        secret["data"] = np.full((100, 3, 4), 42, "f2")
    with h5py.File(capsule_path, "r+", libver=("v108", "v110")) as h5:
        change(h5, tmp_path)
    with pytest.raises(DataError, match=message) as refusal:
        inspect_structure(capsule_path)
    assert str(capsule_path) in refusal.value.message
    assert "\n" not in refusal.value.message
    assert refusal.value.hint
    assert refusal.value.exit_code == ExitCode.DATA


def test_honest_file_passes(capsule_path: Path) -> None:
    assert inspect_structure(capsule_path).rows == {"train": 100, "test": 30}


@pytest.mark.parametrize(
    "filters", [{"compression": "gzip"}, {"compression": "lzf", "shuffle": True}, {"fletcher32": True}]
)
def test_known_filters_and_plain_storage_pass(filters: dict[str, object], capsule_path: Path) -> None:
    """A file need not be chunked as ours, nor uncompressed."""
    with h5py.File(capsule_path, "r+") as h5:
        data = np.arange(100 * 3 * 4).reshape(100, 3, 4).astype("f4")
        swap(h5, "train/sketches", data=data, **filters)
        swap(h5, "train/labels", data=h5["train/labels"][()])
    file = open_capsules(capsule_path)
    np.testing.assert_array_equal(file.read("train", slice(None))["sketches"], data)
    file.close()


def test_every_truncation_is_refused(capsule_path: Path, tmp_path: Path) -> None:
    data = capsule_path.read_bytes()
    for end in (9, 100, 2000, len(data) // 2, len(data) - 1):
        path = tmp_path / "short.h5"
        path.write_bytes(data[:end])
        with pytest.raises(DataError, match=r"truncated|damaged HDF5 structure"):
            inspect_structure(path)
    with pytest.raises(DataError, match="is truncated"):
        inspect_structure(path)


def test_random_damage_is_refused_or_harmless(capsule_path: Path, tmp_path: Path) -> None:
    """Whatever bytes are hit, the answer is a DataError or a readable file, never another exception."""
    data = np.frombuffer(capsule_path.read_bytes(), np.uint8)
    used = np.flatnonzero(data)
    random = np.random.default_rng(0)
    path = tmp_path / "damaged.h5"
    outcomes = set()
    for _ in range(150):
        damaged = data.copy()
        places = random.choice(used[used >= 8], 3)
        damaged[places] = random.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            inspect_structure(path)
            outcomes.add("passed")
        except DataError:
            outcomes.add("refused")
    assert outcomes == {"passed", "refused"}


def test_what_is_no_capsule_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "text.h5").write_text("label,text\n")
    (tmp_path / "noise.h5").write_bytes(bytes(range(200, 250)))
    (tmp_path / "empty.h5").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.h5")
    expected = {
        "arrays.npz": "begins like a zip",
        "array.npy": "is a .npy array",
        "text.h5": "begins like text",
        "noise.h5": "is not an HDF5 file",
        "empty.h5": "is empty",
        "pipe.h5": "is not a regular file",
        ".": "is a folder",
        "absent.h5": "no such file",
        "absent/a.h5": "no such file",
        "text.h5/a.h5": "cannot be read",
        "\0": "cannot be read",
        "a" * 5000: "cannot be read",
    }
    for name, message in expected.items():
        with pytest.raises(DataError, match=message):
            open_capsules(tmp_path / name)


@pytest.mark.real_look
def test_no_permission(capsule_path: Path) -> None:
    capsule_path.chmod(0)
    user = os.geteuid()
    if user == 0:  # root may read everything
        os.seteuid(65534)
    try:
        with pytest.raises(DataError, match="no permission"):
            open_capsules(capsule_path)
    finally:
        os.seteuid(user)


@pytest.mark.real_look
def test_stranger_is_examined_in_a_child_first(
    capsule_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An own file is not; a copy of it is; a child that crashes is a refusal and this process never opens the file."""
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\nkill -SEGV $$\n")
    interpreter.chmod(interpreter.stat().st_mode | stat.S_IXUSR)
    copy = Path(shutil.copy(capsule_path, tmp_path / "copy.h5"))
    with monkeypatch.context() as context:
        context.setattr(sys, "executable", str(interpreter))
        assert open_capsules(capsule_path).rows == {"train": 100, "test": 30}
        with pytest.raises(DataError, match=r"copy.h5: crashes the HDF5 library \(signal 11\)"):
            open_capsules(copy)
    open_capsules(copy).close()  # a real child now, which finds nothing wrong
    with monkeypatch.context() as context:
        context.setattr(sys, "executable", str(interpreter))
        open_capsules(copy).close()  # known by now
        os.utime(copy)
        with pytest.raises(DataError, match="crashes"):
            open_capsules(copy)


@pytest.mark.real_look
def test_refusal_of_the_child_arrives(capsule_path: Path) -> None:
    with h5py.File(capsule_path, "r+") as h5:
        external_link(h5, capsule_path.parent)
    with pytest.raises(DataError, match="soft or external link") as refusal:
        open_capsules(capsule_path)
    assert refusal.value.hint == "copy the data itself into the file"


@pytest.mark.real_look
def test_a_look_that_was_begun_before_is_the_one_that_counts(
    capsule_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (Path(shutil.copy(capsule_path, tmp_path / name)) for name in ("whole.h5", "broken.h5"))
    with h5py.File(broken, "r+") as h5:
        external_link(h5, tmp_path)
    for path in (whole, broken):
        quarantine.begin(path)
    monkeypatch.setattr(sys, "executable", "/nowhere")  # nothing can be started any more
    open_capsules(whole).close()
    with pytest.raises(DataError, match="soft or external link"):
        open_capsules(broken)
    with pytest.raises(FileNotFoundError):
        quarantine.begin(tmp_path / "none.h5")


@pytest.mark.real_look
def test_child_that_hangs_or_fails(capsule_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copy(capsule_path, tmp_path / "copy.h5"))
    interpreter = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(interpreter))
    monkeypatch.setattr(quarantine, "_TIMEOUT_S", 0.3)
    interpreter.write_text("#!/bin/sh\nexec sleep 5\n")
    interpreter.chmod(0o755)
    with pytest.raises(DataError, match="hangs"):
        open_capsules(copy)
    monkeypatch.setattr(quarantine, "_TIMEOUT_S", 100)
    interpreter.write_text("#!/bin/sh\necho broken >&2; exit 1\n")
    with pytest.raises(RuntimeError, match="broken"):
        open_capsules(copy)


@pytest.mark.real_look
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_child_says_nothing_of_the_file(
    capsule_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """SLURM signals every process of a job; the file is looked at again, and never called hostile."""
    copy, interpreter = Path(shutil.copy(capsule_path, tmp_path / "copy.h5")), tmp_path / "python"
    # By Python: a shell that was started in the background cannot be ended by SIGINT.
    program = f"import os, signal; signal.signal({number}, signal.SIG_DFL); os.kill(os.getpid(), {number})"
    dying = f'{sys.executable} -c "{program}"'
    interpreter.write_text(f'#!/bin/sh\nif [ -e seen ]; then exec {sys.executable} "$@"; fi\n: > seen; exec {dying}\n')
    interpreter.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as context:
        context.setattr(sys, "executable", str(interpreter))
        open_capsules(copy).close()
        os.utime(copy)
        interpreter.write_text(f"#!/bin/sh\nexec {dying}\n")
        with pytest.raises(StoppedEarly, match="asked to stop"):
            open_capsules(copy)


@pytest.mark.real_look
def test_the_child_is_out_of_the_way_of_ctrl_c(
    capsule_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, interpreter = Path(shutil.copy(capsule_path, tmp_path / "copy.h5")), tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nps -o pgid= $$ > "{tmp_path}/group"; exec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    open_capsules(copy).close()
    assert int((tmp_path / "group").read_text()) != os.getpgrp()
