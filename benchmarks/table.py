"""The timing benchmarks that `python -m benchmarks` runs, and the targets for figures of their records."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A ratio, a difference in seconds or an exponent, with its 95 % interval if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Given:
    """What the user provides for the benchmarks that need it."""

    public: Path | None = None
    messages: Path | None = None
    run: Path | None = None


Need = Callable[[Given], str | None]  # what is missing, in words


@dataclass(frozen=True)
class Job:
    """One benchmark with its settings, run in a separate process; its record is written to NAME.json."""

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()  # added to run within a minute, as a test; the figures then say little
    given: dict[str, str] = field(default_factory=dict)  # option ("": positional) -> the field of `Given` it takes
    needs: Need = lambda given: None

    def command(self, given: Given, quick: bool) -> list[str]:
        """Arguments of `python`, without --out."""
        named = [(option, getattr(given, name)) for option, name in self.given.items()]
        words = [word for option, value in named if value is not None for word in (option, str(value)) if word]
        return ["-m", f"benchmarks.{self.module}", *words, *self.arguments, *(self.quick if quick else ())]


@dataclass(frozen=True)
class Row:
    """A row of the table. `limit`: the highest value that meets the target, or the lowest if `at_least`; None: no
    target.
    """

    what: str
    against: str
    job: str
    figure: Callable[[Record], Figure]
    limit: float | None = None
    at_least: bool = False
    unit: str = ""

    def target(self) -> str:
        if self.limit is None:
            return "-"
        return f"{'>=' if self.at_least else '<='} {self.limit:g}{self.unit}"

    def verdict(self, figure: Figure) -> str:
        """Whether the median meets the target; also says if the interval includes the limit."""
        if self.limit is None:
            return "-"
        met = figure.value >= self.limit if self.at_least else figure.value <= self.limit
        unsure = figure.low is not None and figure.high is not None and figure.low <= self.limit <= figure.high
        return ("met" if met else "missed") + (", within the interval" if unsure else "")


def ratio(*keys: str) -> Callable[[Record], Figure]:
    """Reads a `benchmarks.timing.ratio` at these keys of the record."""
    return lambda record: _figure(_at(record, keys), "ratio")


def seconds_more(*keys: str) -> Callable[[Record], Figure]:
    """Reads a `benchmarks.timing.difference` at these keys."""
    return lambda record: _figure(_at(record, keys), "difference")


def median(*keys: str) -> Callable[[Record], Figure]:
    """Reads a `benchmarks.timing.rounded` at these keys."""
    return lambda record: _figure(_at(record, keys), "median")


def exponent(name: str) -> Callable[[Record], Figure]:
    """Reads an exponent of `benchmarks.growth`."""
    return lambda record: _figure(record["growth"][name], "exponent")


def of_cpprb(capacity: int) -> Callable[[Record], Figure]:
    """Reads the ratio to cpprb, with states as float16, the default."""

    def figure(record: Record) -> Figure:
        found = record[f"cpprb, {capacity}, float16"]["ours / cpprb"]
        return Figure(found["ratio"], *found["interval"])

    return figure


def of_concepts(record: Record) -> Figure:
    found = record["forward and update"]
    return Figure(found["ours_over_library"], found["ratio_low"], found["ratio_high"])


def memory_of_four_times_the_rows(record: Record) -> Figure:
    """Ratio of the loader's memory for the larger file to that for the smaller one."""
    small, large = record["peak growth, MB"]["loader"].values()
    return Figure(large / small)


def of_flat(name: str) -> Callable[[Record], Figure]:
    """Reads the ratio of the time at the largest size to that at the smallest."""

    def figure(record: Record) -> Figure:
        times = record["growth"][name]["milliseconds"]
        return Figure(times[-1] / times[0])

    return figure


def package(name: str, install: str) -> Need:
    return lambda given: f"needs {install} (pip install {install})" if importlib.util.find_spec(name) is None else None


def option(name: str, words: str) -> Need:
    return lambda given: None if getattr(given, name) is not None else f"needs {words}"


PUBLIC = option("public", "--public FOLDER, a clone of the public code")
JOBS = (
    Job("puzzle_step", "puzzle_step", (), ("--pairs", "2", "--batch", "1"), {"--public": "public"}, PUBLIC),
    Job(
        "puzzle_step_compiled",
        "puzzle_step",
        ("--compile",),
        ("--pairs", "2", "--batch", "1"),
        {"--public": "public"},
        PUBLIC,
    ),
    Job(
        "puzzle_step_small",
        "puzzle_step",
        ("--width", "128", "--cells", "16", "--prefix", "1", "--batch", "96"),
        ("--pairs", "2"),
        {"--public": "public"},
        PUBLIC,
    ),
    Job(
        "puzzle_step_mlp",
        "puzzle_step",
        ("--mixer", "mlp"),
        ("--pairs", "2", "--batch", "1"),
        {"--public": "public"},
        PUBLIC,
    ),
    Job("step_cost", "step_cost", (), ("--hidden", "32", "--layers", "1", "--batch", "16", "--repetitions", "3")),
    Job(
        "replay",
        "replay",
        (),
        ("--turns", "3"),
        needs=package("cpprb", "cpprb"),
    ),
    Job("memory_read", "memory_read", (), ("--rounds", "3", "--rows", "8")),
    Job(
        "concepts",
        "concepts",
        (),
        ("--rounds", "3", "--codes", "64"),
        needs=package("vector_quantize_pytorch", "vector-quantize-pytorch"),
    ),
    Job("gradient_monitor", "gradient_monitor", (), ("--pairs", "3", "--warmup", "5", "--case", "quickstart")),
    Job("loader", "loader", (), ("--rows", "500", "2000", "--turns", "3")),
    Job(
        "build",
        "build",
        (),
        ("--rows", "400", "--rounds", "2"),
        {"--text": "messages"},
        option("messages", "--messages FILE, label<TAB>text"),
    ),
    Job("start", "start", (), ("--rounds", "3", "--heavy-rounds", "2")),
    Job(
        "adaptive_inference",
        "adaptive_inference",
        (),
        ("--repetitions", "3"),
        {"": "run"},
        option("run", "--run RUN, trained with arch.enable_adaptive_hcycles=true"),
    ),
    Job("growth", "growth", (), ("--quick", "--rounds", "2")),
)

_STEP = "training step"


def beside_the_public_code(what: str, job: str, limit: float) -> tuple[Row, Row]:
    """Rows for a step, and for the lower bound of any step with the same arithmetic."""
    floor = Row(f"{_STEP}, {what}: its products and attention alone", "the same", job, ratio("floor / theirs"))
    return Row(f"{_STEP}, {what}", "public TRM code, likewise", job, ratio("ours / theirs"), limit), floor


ROWS: tuple[Row, ...] = (
    *beside_the_public_code("tokens, 6.8M parameters, B 8 x 97, eager", "puzzle_step", 0.88),
    *beside_the_public_code("tokens, 6.8M parameters, B 8 x 97, compiled", "puzzle_step_compiled", 0.92),
    *beside_the_public_code("tokens, small model, eager", "puzzle_step_small", 0.75),
    *beside_the_public_code("tokens, MLP mixer, B 8 x 97, eager", "puzzle_step_mlp", 0.88),
    Row(f"{_STEP} with DQN", "without", "step_cost", ratio("dqn over plain"), 1.05),
    Row(f"{_STEP} with DQN and EXPAND", "with DQN alone", "step_cost", ratio("expand over dqn"), 1.03),
    Row(f"{_STEP} with hierarchical attention", "without", "step_cost", ratio("hierarchy over plain")),
    Row("replay, 100,000, float16", "cpprb", "replay", of_cpprb(100_000), 0.7),
    Row("replay, 1,000,000, float16", "cpprb", "replay", of_cpprb(1_000_000), 1.0),
    Row("memory read, 4,096 slots", "softmax over all", "memory_read", median("read / full_attention"), 1.0),
    Row("concepts, forward and update", "vector-quantize-pytorch", "concepts", of_concepts, 1.0),
    Row(
        "gradient monitor, % of a step",
        "step without",
        "gradient_monitor",
        median("cases", "quickstart", "gross_pct"),
        unit=" %",
    ),
    Row(
        "loader, samples/s",
        "the same data in memory",
        "loader",
        ratio("loader / in memory"),
        0.9,
        at_least=True,
    ),
    Row("loader, resident memory", "a file a fourth as large", "loader", memory_of_four_times_the_rows, 1.3),
    Row(
        "build, messages, builds/s with 2 workers",
        "1 worker",
        "build",
        ratio("messages", "one / two workers"),
        1.7,
        at_least=True,
    ),
    Row("build, messages, beyond the encoder", "encoder alone", "build", ratio("messages", "overhead"), 0.1),
    Row(
        "build, pictures, builds/s with 2 workers",
        "1 worker",
        "build",
        ratio("pictures", "one / two workers"),
        1.7,
        at_least=True,
    ),
    Row("build, pictures, beyond the encoder", "encoder alone", "build", ratio("pictures", "overhead"), 0.1),
    Row(
        "trm --help",
        "python -c pass",
        "start",
        seconds_more("light", "trm --help - python -c pass", "seconds"),
        0.15,
        unit=" s",
    ),
    Row(
        "trm diagnose RUN",
        "python -c pass",
        "start",
        seconds_more("light", "trm diagnose - python -c pass", "seconds"),
        0.5,
        unit=" s",
    ),
    Row(
        "trm diagnose RUN with 100,000 logged steps",
        "python -c pass",
        "start",
        seconds_more("light", "trm diagnose, long log - python -c pass", "seconds"),
        1.0,
        unit=" s",
    ),
    Row(
        "trm train --dry-run",
        "import torch",
        "start",
        seconds_more("heavy", "trm --dry-run - import torch", "seconds"),
        0.7,
        unit=" s",
    ),
    *(
        Row(
            f"adaptive inference, {part}, samples/s",
            "all steps and cycles",
            "adaptive_inference",
            ratio(part, "times faster"),
            least,
            at_least=True,
        )
        for part, least in (("all samples", 2.0), ("easy half", 3.0))
    ),
    Row("step by batch, exponent", "1", "growth", exponent("B"), 1.0),
    Row("step by capsules, exponent", "1, attention 2", "growth", exponent("k"), 2.0),
    Row("step by H(L+1), exponent", "1", "growth", exponent("H(L+1)"), 1.0),
    Row("step by width, exponent", "2", "growth", exponent("width"), 2.0),
    Row("replay, 30 times the transitions", "10,000", "growth", of_flat("replay capacity"), 1.3),
    Row("loader, 16 times the rows", "1,000", "growth", of_flat("rows of the file"), 1.3),
)


def render(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, for a terminal."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    filled = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    padded = [f"| {' | '.join(line)} |" for line in filled]
    return "\n".join([padded[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *padded[1:]])


def table(records: dict[str, Record], missing: dict[str, str], judged: bool = True) -> str:
    """All rows of the jobs that ran, and of those that did not, with the reason."""
    lines = [["what", "against", "ratio (95 %)", "target", ""]]
    for row in ROWS:
        if row.job in missing:
            lines.append([row.what, row.against, "-", row.target(), f"not run: {missing[row.job]}"])
        elif row.job in records:
            figure = row.figure(records[row.job])
            lines.append(
                [
                    row.what,
                    row.against,
                    in_words(figure, row.unit),
                    row.target(),
                    row.verdict(figure) if judged else "quick",
                ]
            )
    return render(lines)


def in_words(figure: Figure, unit: str) -> str:
    text = f"{figure.value:.3g}"
    if figure.low is not None and figure.high is not None:
        text += f" ({figure.low:.3g} to {figure.high:.3g})"
    return f"{'+' if unit == ' s' else ''}{text}{unit}"


def _at(record: Record, keys: Sequence[str]) -> Record:
    for key in keys:
        record = record[key]
    return record


def _figure(found: Record, name: str) -> Figure:
    return Figure(found[name], found.get("low"), found.get("high"))
