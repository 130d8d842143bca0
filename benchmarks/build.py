"""`trm build-capsules` with two workers and with one, and what it takes beyond the encoder alone.

    python -m benchmarks.build --out benchmarks/results/build.json [--text /path/to/sms.tsv] [--rows 12000] [--rounds 5]

Built-in encoders on real data: the handwritten digits of scikit-learn at 32 x 32 (patch-pca), and a file of labelled
messages, `label<TAB>text` (tfidf-svd; left out without --text). A source gets --rows samples, so that starting workers
is a small part: digits moved to drawn places, pairs of messages of a label joined. Workers import this module again, so
it imports neither torch nor scikit-learn at its top. In turn, a build of each:

    two, one   workers that encode (two need two idle cores)
    none       encoding in the process itself
    encoder    no builder: the contents, in memory, are fitted on and encoded in the builder's pieces, one thread

Beside the encoder the builder reads the source twice, finds duplicates and splits, makes sketches and checksums, keeps
chunks that a killed build goes on from, writes the file with its hashes, and measures what expansion is worth.
`overhead` is all of it over the encoder alone; `seconds by stage` says where it goes. Ratios of neighbours with 95 %
intervals.
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
PLAIN = str.maketrans({"\t": " ", '"': "'"})  # nothing that a tab-separated file would have to quote
STAGES = ("scan", "fit", "encode", "write", "probe")


def write_pictures(path: Path, rows: int) -> Path:
    """Digits at four times their size, each moved by up to eight pixels."""
    from sklearn.datasets import load_digits

    random, data = np.random.default_rng(0), load_digits()
    chosen = random.integers(0, len(data.images), rows)
    large = np.kron(data.images[chosen] * (255 / 16), np.ones((SIDE // 8, SIDE // 8))).astype(np.uint8)
    moves = random.integers(-8, 9, (rows, 2)).tolist()
    moved = [np.roll(image, move, axis=(0, 1)) for image, move in zip(large, moves, strict=True)]
    np.savez(path, images=np.stack(moved), labels=data.target[chosen])
    return path


def write_messages(path: Path, source: Path, rows: int) -> Path:
    """Pairs of messages with the same label."""
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
    """Builds of one source; where their seconds went is kept."""

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
            # A stage reports first when it has begun: what came before is the stage's that reported before.
            spent[current] += now - last
            last, current = now, stage

        build_capsules([str(self.source)], self.out, config(workers), progress=watch, overwrite=True)
        spent[current] += time.perf_counter() - last
        self.stages.setdefault(workers, []).append(spent)

    def median_stages(self, workers: int) -> dict[str, float]:
        """Of all builds but the first."""
        builds = self.stages[workers][1:]
        return {stage: round(float(np.median([spent[stage] for spent in builds])), 3) for stage in STAGES}


def config(workers: int = 0) -> BuildConfig:
    return BuildConfig(workers=workers)


def encoder_alone(source: Path) -> Callable[[], None]:
    """Fits and encodes what the builder would, from contents in memory."""
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
