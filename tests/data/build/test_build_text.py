"""Text of every form: duplicates, sketches, what is fitted on what, and concepts where there are no labels."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from built_file import Build
from small_sources import write_messages, write_text_folders

from trm_core.data.build.text import ParagraphReader, text_digest
from trm_core.data.fields import IGNORE_LABEL
from trm_core.errors import ConfigError, DataError

SMALL = {"num_capsules": 4, "num_children": 2, "dim": 16}


def test_labelled_lines_without_a_header(build: Build, tmp_path: Path) -> None:
    built = build(write_messages(tmp_path / "messages.tsv", 200), **SMALL)
    assert (built.report.kind, built.report.encoder) == ("text", "tfidf-svd")
    assert built.manifest["class_names"] == ["ham", "spam"]
    assert built.all("children").shape == (200, 4, 2, 16)
    assert built.all("mask")[:, 0].all()
    value = built.report.expansion_value
    assert value is not None
    assert value["children"] > value["chance"] + 0.1


def test_a_folder_of_texts_for_each_class_is_their_lines(build: Build, tmp_path: Path) -> None:
    messages = write_messages(tmp_path / "messages.tsv", 200)
    folder = write_text_folders(tmp_path / "folder", messages)
    messages.write_text("".join(sorted(messages.read_text().splitlines(keepends=True), key=lambda line: line[:4])))
    from_lines, from_files = build(messages, **SMALL), build(folder, name="files.h5", **SMALL)
    assert from_files.report.reason == "a folder with 2 folders of texts, one per class"
    assert from_files.manifest["class_names"] == ["ham", "spam"]
    assert from_files.manifest["content_hash"] == from_lines.manifest["content_hash"]
    assert any("texts beside the class folders are left out (1)" in message for message in from_files.messages)
    concepts = build(folder, name="concepts.h5", label="none", num_concepts=4, **SMALL)
    assert concepts.report.class_names is None
    with pytest.raises(DataError, match="a folder of texts has no column 'kind'"):
        build(folder, name="column.h5", label="kind", **SMALL)


def test_folders_of_texts_that_are_no_classes(build: Build, tmp_path: Path) -> None:
    folder = write_text_folders(tmp_path / "all", write_messages(tmp_path / "messages.tsv", 80))
    (folder / "README.txt").unlink()
    flat = folder / "ham"
    built = build(flat, num_concepts=4, **SMALL)
    assert built.report.reason == "a folder of texts without classes, one in each file"
    assert built.report.class_names is None
    parts = tmp_path / "parts"
    for name in ("train", "test"):
        shutil.copytree(folder, parts / name)
    with pytest.raises(DataError, match="its folders are splits"):
        build(parts, name="parts.h5", **SMALL)
    (flat / "bad.txt").write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"bad.txt:2: is not UTF-8"):
        build(folder, name="bad.h5", **SMALL)


def test_duplicates_in_other_case_and_spacing_share_a_split(build: Build, tmp_path: Path) -> None:
    assert text_digest("Win  a PRIZE\tnow ") == text_digest("win a prize now")
    source = write_messages(tmp_path / "messages.tsv", 240, duplicates=80)
    built = build(source, **SMALL)
    assert built.report.duplicates == 80
    split_of = {row: split for split, fields in built.splits.items() for row in fields["ids"].tolist()}
    assert all(split_of[160 + number] == split_of[number * 2] for number in range(80))
    assert {split_of[160 + number] for number in range(80)} == {"train", "validation", "test"}


def test_texts_that_look_the_same_once_encoded_do_not_cross_either(build: Build, tmp_path: Path) -> None:
    lines = [f"{'spam' if n % 3 else 'ham'}\t{'win now' if n % 3 else 'see you'} friend{n}" for n in range(60)]
    # 60 different documents without a single known word are all the same to the encoder.
    lines += [f"{'spam' if n % 2 else 'ham'}\t{chr(0x4E00 + n)} {chr(0x4F00 + n)}" for n in range(60)]
    source = tmp_path / "messages.tsv"
    source.write_text("\n".join(lines), encoding="utf-8")
    built = build(source, num_capsules=2, num_children=1, dim=2, encoder="tfidf-svd")
    seen = [{row.tobytes() for row in fields["children"]} for fields in built.splits.values()]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_the_sketch_is_the_leading_quarter_of_the_mean(build: Build, tmp_path: Path) -> None:
    built = build(write_messages(tmp_path / "messages.tsv", 100), **SMALL)
    children = built.all("children").astype(np.float32)
    real = (children != 0).any(axis=3)
    mean = children.sum(axis=2) / np.maximum(real.sum(axis=2), 1)[..., None]
    sketches = built.all("sketches").astype(np.float32)
    assert (sketches[..., 4:] == 0).all()
    assert np.allclose(sketches[..., :4], mean[..., :4], atol=0.02)
    two = build(tmp_path / "messages.tsv", name="two.h5", sketch_dims=2, **SMALL).all("sketches").astype(np.float32)
    assert np.allclose(two[..., :2], mean[..., :2], atol=0.02)
    assert not two[..., 2:].any()
    with pytest.raises(ConfigError, match="sketch_dims=99"):
        build(tmp_path / "messages.tsv", name="none.h5", sketch_dims=99, **SMALL)
    whole = build(tmp_path / "messages.tsv", name="mean.h5", sketch="mean", **SMALL)
    assert (whole.all("sketches")[..., 4:] != 0).any()
    assert not build(tmp_path / "messages.tsv", name="none.h5", sketch="none", **SMALL).all("sketches").any()


@pytest.mark.parametrize("encoder", ["tfidf-svd", "hashing-svd"])
def test_encoders_are_fitted_on_the_training_split_alone(build: Build, tmp_path: Path, encoder: str) -> None:
    source = write_messages(tmp_path / "messages.tsv", 120)
    first = build(source, name="a.h5", encoder=encoder, **SMALL)
    rng = np.random.default_rng(1)
    lines = source.read_text().splitlines()
    for split in ("validation", "test"):
        for row in first.splits[split]["ids"]:
            words = rng.choice(["prize", "dinner", "tonight", "cash", "zebra", "quite", "other"], 9)
            lines[row] = f"{lines[row].split(chr(9))[0]}\t{' '.join(words)} {row}"
    source.write_text("\n".join(lines))
    second = build(source, name="b.h5", encoder=encoder, **SMALL)
    for field in ("children", "sketches", "checksums"):
        assert np.array_equal(first.splits["train"][field], second.splits["train"][field])
    assert not np.array_equal(first.splits["test"]["children"], second.splits["test"]["children"])


def test_csv_and_jsonl_with_named_columns(build: Build, tmp_path: Path) -> None:
    lines = [line.split("\t") for line in write_messages(tmp_path / "m.tsv", 60).read_text().splitlines()]
    csv = tmp_path / "m.csv"
    csv.write_text("id,verdict,body\n" + "".join(f'{n},{a},"{b}, ""so""\nit is"\n' for n, (a, b) in enumerate(lines)))
    jsonl = tmp_path / "m.jsonl"
    jsonl.write_text("".join(json.dumps({"body": b, "verdict": a, "meta": {"x": [1]}}) + "\n" for a, b in lines))
    for source in (csv, jsonl):
        built = build(source, name=source.name + ".h5", label="verdict", text="body", **SMALL)
        assert built.report.kind == "text"
        assert built.by_id("labels").tolist() == [int(a == "spam") for a, _ in lines]


def test_paragraphs_have_concepts_as_targets(build: Build, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = [f"word{n}" for n in range(80)]
    blocks = [f" = Heading {n} = " if n % 5 == 0 else " ".join(rng.choice(words, 30)) + " ." for n in range(200)]
    source = tmp_path / "book.txt"
    source.write_text("\n\n".join(blocks))
    built = build(source, num_concepts=8, **SMALL)
    assert (built.report.task, built.report.num_classes) == ("concepts", 12)
    assert sum(built.report.counts.values()) == 160
    labels, mask = built.all("labels"), built.all("mask")
    assert labels.shape == (160, 4)
    assert (labels[~mask] == IGNORE_LABEL).all()
    assert labels[mask].min() >= 4
    assert labels[mask].max() < 12
    # Equal detail, equal concept.
    flat = built.all("children").reshape(-1, 32)
    for one in flat[:5]:
        assert len(set(labels.ravel()[(flat == one).all(axis=1)].tolist())) == 1


def test_wrapped_lines_are_one_paragraph_and_long_lines_one_each(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    long = "word " * 60
    source.write_text(f"one two three\nfour five six\n\n{long}\n{long}x\n\n# Title here it is\n")
    contents = [record.content for record in ParagraphReader(str(source), lambda _: None).records(digests=True)]
    assert contents == ["one two three four five six", long.strip(), long + "x"]


def test_paragraphs_of_a_script_without_spaces(build: Build, tmp_path: Path) -> None:
    source = tmp_path / "chinese.txt"
    texts = [
        f"第{n}部电影非常好看。我很喜欢里面的演员{chr(0x4E00 + 7 * n)}。剧情有点慢。但是结尾很好。" for n in range(40)
    ]
    source.write_text("\n\n".join(["目录", *texts]), encoding="utf-8")
    built = build(source, num_concepts=4, **SMALL)
    assert sum(built.report.counts.values()) == 40, "a heading of one word is left out, as in any language"
    assert built.all("mask").all(), "each has four capsules"


def test_a_label_that_training_lacks_is_not_scored(build: Build, tmp_path: Path) -> None:
    source = write_messages(tmp_path / "messages.tsv", 100)
    lines = source.read_text().splitlines()
    lines[-1] = "rare\tthis label comes once only"
    source.write_text("\n".join(lines))
    built = build(source, shuffle=False, validation=0.0, test=0.5, **SMALL)
    # The only sample of its class goes to training when shares are taken by class; one of two folds must hold it out.
    assert "rare" in built.manifest["class_names"]
    folds = [
        build(source, name=f"{fold}.h5", folds=2, fold=fold, shuffle=False, validation=0.0, **SMALL) for fold in (0, 1)
    ]
    (built,) = (fold for fold in folds if fold.manifest["class_names"] == ["ham", "spam"])
    assert (built.splits["test"]["labels"] == IGNORE_LABEL).sum() == 1
    assert any("not scored" in message for message in built.messages)


@pytest.mark.skipif("TRM_TEST_DATA" not in os.environ, reason="TRM_TEST_DATA names no folder with sms/sms.tsv")
def test_the_real_sms_collection(build: Build) -> None:
    built = build(Path(os.environ["TRM_TEST_DATA"]) / "sms" / "sms.tsv")
    assert sum(built.report.counts.values()) == 5574
    assert built.report.duplicates >= 403
    assert built.report.expansion_value is not None
    assert built.report.expansion_value["children"] > 0.94


@pytest.mark.skipif("TRM_TEST_DATA" not in os.environ, reason="TRM_TEST_DATA names no folder with wikitext-2")
def test_the_real_wikitext(build: Build) -> None:
    built = build(Path(os.environ["TRM_TEST_DATA"]) / "wikitext-2" / "valid.txt", num_concepts=64)
    assert (built.report.task, built.report.num_classes) == ("concepts", 68)
    assert built.report.expansion_value is not None
    assert built.report.expansion_value["children"] > built.report.expansion_value["sketches"] + 0.2


def test_no_words_at_all(build: Build, tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text("label,text\n" + "a,\nb,\n" * 20)
    with pytest.raises(DataError, match="hold no words"):
        build(source)


def test_a_field_that_only_late_lines_have_is_one(build: Build, tmp_path: Path) -> None:
    """A label, found by its usual name, and a text that is named."""
    source = tmp_path / "late.jsonl"

    def write(early: str, late: str, values: Sequence[str]) -> None:
        texts = [{early: f"what is said here as number {n}"} for n in range(250)]
        rows = texts[:210] + [{**text, late: value} for text, value in zip(texts[210:], values, strict=True)]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("text", "label", "ab" * 20)
    built = build(source)
    assert built.manifest["class_names"] == ["a", "b"]
    assert "210 samples have no label: they are kept and never scored" in built.messages
    write("body", "remark", [f"it was remarked that {word}{n}" for n in range(20) for word in ("good", "bad")])
    remarks = build(source, name="other.h5", text="remark")
    assert sum(remarks.report.counts.values()) == 250


def test_what_the_first_lines_have_is_not_replaced_by_a_late_field(build: Build, tmp_path: Path) -> None:
    """Such as a note in one line, whose name comes first among the usual ones."""
    source = tmp_path / "late.jsonl"
    rows = [{"sentence": f"what is said here as number {n}", "category": "ab"[n % 2]} for n in range(250)]
    rows[-1] |= {"text": "look at this one again", "label": "odd"}
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    built = build(source)
    assert f"{source}: text column 'sentence'" in built.messages
    assert built.manifest["class_names"] == ["a", "b"]
