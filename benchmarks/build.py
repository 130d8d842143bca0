"""`trm build-capsules` with two workers and with one, and its overhead over the encoder alone.

    python -m benchmarks.build --out benchmarks/results/build.json [--text /path/to/sms.tsv] [--rows 12000] [--rounds 5]

Built-in encoders on real data: the handwritten digits of scikit-learn at 32 x 32 (patch-pca), and a file of labelled
messages, `label<TAB>text` (tfidf-svd; left out without --text). A source is enlarged to --rows samples, so that
starting workers takes a small part of the time: digits are shifted at random, and messages with the same label are
joined in pairs. Workers import this module again, so it imports neither torch nor scikit-learn at the top. In turn, a
build of each:

    two, one   worker processes that encode (two need two idle cores)
    none       encoding in the main process
    encoder    no builder: the encoder is fitted on contents in memory, and encodes them in the builder's chunks, with
               one thread

Besides encoding, the builder reads the source twice, finds duplicates and splits, makes sketches and checksums, keeps
chunks from which a killed build resumes, writes the file with its hashes, and measures what expansion is worth.
`overhead` is the whole build relative to the encoder alone; `seconds by stage` says where the time goes. Ratios are of
neighbouring builds, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import describe_machine, publish
from benchmarks.timing import alternate, ratio
from trm_core.config.schema import BuildConfig
from trm_core.data.build.pipeline import build_capsules
from trm_core.data.threads import one_thread

SIDE = 32
PLAIN = str.maketrans({"\t": " ", '"': "'"})  # replaces what a tab-separated file would have to quote
STAGES = ("scan", "fit", "encode", "write", "probe")


def write_pictures(path: Path, rows: int) -> Path:
    """Write digits enlarged four times, each shifted by up to eight pixels."""
    from sklearn.datasets import load_digits

    random, data = np.random.default_rng(0), load_digits()
    chosen = random.integers(0, len(data.images), rows)
    large = np.kron(data.images[chosen] * (255 / 16), np.ones((SIDE // 8, SIDE // 8))).astype(np.uint8)
    moves = random.integers(-8, 9, (rows, 2)).tolist()
    moved = [np.roll(image, move, axis=(0, 1)) for image, move in zip(large, moves, strict=True)]
    np.savez(path, images=np.stack(moved), labels=data.target[chosen])
    return path


def write_messages(path: Path, source: Path, rows: int) -> Path:
    """Write pairs of messages with the same label."""
    random = np.random.default_rng(0)
    by_label: dict[str, list[str]] = {}
    for line in source.read_text().splitlines():
        label, _, text = line.partition("\t")
        by_label.setdefault(label, []).append(text.translate(PLAIN))
    labels = list(by_label)
    shares = np.array([len(texts) for texts in by_label.values()], float)
    lines = ["label\ttext"]
    for label in random.choice(labels, rows, p=shares / shares.sum()).tolist():
        first, second = random.choice(by_label[label], 2)
        lines.append(f"{label}\t{first} {second}")
    path.write_text("\n".join(lines) + "\n")
    return path


class Build:
    """Builds of one source, with the seconds spent in each stage."""

    def __init__(self, source: Path, out: Path) -> None:
        self.source, self.out = source, out
        self.stages: dict[int, list[dict[str, float]]] = {}

    def run(self, workers: int) -> None:
        spent = dict.fromkeys(STAGES, 0.0)
        last = time.perf_counter()
        current = STAGES[0]

        def watch(stage: str, done: int, total: int) -> None:
            nonlocal last, current
            now = time.perf_counter()
            # A stage first reports when it has begun; the time before that belongs to the stage that reported last.
            spent[current] += now - last
            last, current = now, stage

        build_capsules([str(self.source)], self.out, config(workers), progress=watch, overwrite=True)
        spent[current] += time.perf_counter() - last
        self.stages.setdefault(workers, []).append(spent)

    def median_stages(self, workers: int) -> dict[str, float]:
        """Median seconds per stage over all builds but the first."""
        builds = self.stages[workers][1:]
        return {stage: round(float(np.median([spent[stage] for spent in builds])), 3) for stage in STAGES}


def config(workers: int = 0) -> BuildConfig:
    return BuildConfig(workers=workers)


def encoder_alone(source: Path) -> Callable[[], None]:
    """A function that fits and encodes what the builder would, from contents in memory."""
    from trm_core.data.build.chunks import _CHUNK_ROWS
    from trm_core.data.build.detect import detect_kind
    from trm_core.data.build.modality import open_modality

    kind, reason = detect_kind(str(source), config())
    modality = open_modality(kind, reason, [str(source)], config(), lambda message: None)
    contents = [record.content for reader in modality.readers for record in reader.records(digests=False)]
    encoder = modality.encoder

    def encode() -> None:
        with one_thread():
            encoder.fit(contents[: encoder.fit_rows], 0)
            for begin in range(0, len(contents), _CHUNK_ROWS):
                encoder.encode(contents[begin : begin + _CHUNK_ROWS])

    return encode


def measure(source: Path, out: Path, rounds: int) -> dict[str, Any]:
    build = Build(source, out)
    seconds = alternate(
        {
            "two": lambda: build.run(2),
            "one": lambda: build.run(1),
            "none": lambda: build.run(0),
            "encoder": encoder_alone(source),
        },
        rounds,
    )
    return {
        "one / two workers": ratio(seconds["one"], seconds["two"]),
        "none / two workers": ratio(seconds["none"], seconds["two"]),
        "overhead": ratio(seconds["none"] - seconds["encoder"], seconds["encoder"]),
        "median seconds": {name: round(float(np.median(values)), 3) for name, values in seconds.items()},
        "seconds by stage": {name: build.median_stages(n) for name, n in (("two", 2), ("one", 1), ("none", 0))},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--text", type=Path, help="labelled messages, label<TAB>text")
    parser.add_argument("--rows", type=int, default=12_000, help="samples of each source")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "setting": {"rows": arguments.rows, "rounds": arguments.rounds},
        "machine": describe_machine(threads=1),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = {"pictures": write_pictures(folder / "pictures.npz", arguments.rows)}
        if arguments.text is not None:
            sources["messages"] = write_messages(folder / "messages.tsv", arguments.text, arguments.rows)
        for kind, source in sources.items():
            record[kind] = measure(source, folder / f"{kind}.h5", arguments.rounds)
    publish(record, arguments.out)


if __name__ == "__main__":
    main()
