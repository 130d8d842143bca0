"""The one class that users of a trained model need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm_core.data.puzzles.arc_known_copies import KnownCopy, known_copies
from trm_core.data.puzzles.identifiers import number_of, recorded_marks
from trm_core.data.puzzles.questions import Question, question_of
from trm_core.data.recorded_encoder import RecordedEncoder
from trm_core.errors import DataError, UsageError
from trm_core.evaluation.policies import Policy
from trm_core.inference.engine import Engine, Finished
from trm_core.inference.load import load_trained
from trm_core.inference.restarts import Beginnings, Best, remembering
from trm_core.inference.samples import Answer, Sample, samples_of
from trm_core.inference.trained import Trained

BATCH = 64


class Predictor:
    """Answers samples with a trained model.

        predictor = Predictor.load("runs/quickstart-...")            # or an exported folder
        answers = predictor.predict(sketches=x, children=detail)     # arrays [n, k, D], [n, k, m, D]
        answers = predictor.predict(sketches=x, children=lambda row, capsule: read_scan(row, capsule))
        answers = predictor.ask(["a text", "another"])             # raw samples, through the encoder of the data
        answers = predictor.predict(tokens=x, puzzles=numbers)       # puzzles: [n, S], and identifiers [n] if they have
        answers = predictor.ask(["53..7....6..195..."])              # or as people write them

    A callable for `children` is called for a capsule only when the model opens it. Several threads may use one
    predictor at once: nothing in it changes.

    max_steps: reasoning steps before HALT is forced (None: as trained). restarts: how often each sample is thought
    through, each time from another beginning; the answer with the highest halt output is given.
    """

    def __init__(
        self, trained: Trained, *, max_steps: int | None = None, restarts: int = 1, restart_seed: int = 0
    ) -> None:
        self.trained = trained if max_steps is None else trained.with_max_steps(max_steps)
        self.beginnings = Beginnings(trained.model, restarts, restart_seed)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "auto",
        checkpoint: str = "latest",
        *,
        max_steps: int | None = None,
        restarts: int = 1,
        restart_seed: int = 0,
    ) -> Predictor:
        """From a run directory (`checkpoint`: latest or best) or a folder that `trm export` wrote. Raises
        CheckpointError, DataError or UsageError.
        """
        trained = load_trained(Path(path), device, checkpoint)
        return cls(trained, max_steps=max_steps, restarts=restarts, restart_seed=restart_seed)

    def policy(self, name: str | None = None, price: float | None = None, confidence: float = 0.95) -> Policy:
        """How to act: learned, threshold, act, never, all; see `Trained.policy`."""
        return self.trained.policy(name, price, confidence)

    def predict(
        self,
        *,
        policy: str | None = None,
        price: float | None = None,
        confidence: float = 0.95,
        batch: int = BATCH,
        trace: bool = False,
        **fields: Any,
    ) -> list[Answer]:
        """Answers to the rows of arrays: sketches [n, k, D], children ([n, k, m, D], or a callable (row, capsule) ->
        [m, D]), mask [n, k], checksums [n, k, R], parents [n, k], as far as the model uses them. A puzzle model takes
        tokens [n, S] and puzzles [n] (None: the blank identifier).

        price: what a price unit costs in reward (a higher price buys less). trace: every decision holds the
        probabilities of its step. Raises DataError for arrays that do not fit, and whatever a callable raises.
        """
        samples = samples_of(fields, self.trained)
        return list(self.stream(samples, self.policy(policy, price, confidence), batch, trace=trace))

    @cached_property
    def encoder(self) -> RecordedEncoder:
        """Turns raw samples into capsules, exactly as the training data were made. Raises DataError if the capsule file
        was built without keeping its encoder.
        """
        place = self.trained.preprocessing
        if place is None:
            raise DataError(
                f"{self.trained.source} holds no encoder of raw samples",
                hint="build the capsule file again with trm build-capsules, train on it, and export that run",
            )
        return RecordedEncoder.of_file(place) if place.is_file() else RecordedEncoder.of_folder(place)

    def ask(
        self,
        samples: Sequence[Any],
        *,
        kind: str | None = None,
        policy: str | None = None,
        price: float | None = None,
        confidence: float = 0.95,
        batch: int = BATCH,
        trace: bool = False,
    ) -> list[Answer]:
        """Answers to raw samples: texts, pictures, pairs of grids, rows of a table (see `RecordedEncoder.encode`), or
        puzzles (see `question_of`). kind: which one, where the training data mixed several.
        """
        if isinstance(samples, str | bytes | Mapping):
            raise UsageError(f"samples is one {type(samples).__name__}", hint="give a list, even for one sample")
        source = self.encoded(samples, kind)
        return list(self.stream(source, self.policy(policy, price, confidence), batch, trace=trace))

    def encoded(self, samples: Iterable[Any], kind: str | None = None) -> Iterator[Sample]:
        """Raw samples as the model sees them, encoded in blocks."""
        if self.trained.puzzles is not None:
            meaning = self.trained.puzzles
            for number, value in enumerate(samples):
                yield self.question_sample(question_of(value, meaning, f"sample {number}"), f"sample {number}")
            return
        source, first = iter(samples), 0
        while block := list(islice(source, BATCH)):
            try:
                fields = self.encoder.encode(block, kind)
            except DataError as error:
                where = f"of the samples from {first} on, " if first else ""
                raise DataError(f"{where}{error.message}", hint=error.hint) from error
            yield from samples_of(fields, self.trained, first)
            first += len(block)

    def question_sample(self, question: Question, where: str) -> Sample:
        """A puzzle as the model sees it. Raises DataError for an unknown identifier."""
        number = self.identifier_of(question, where)
        try:
            (sample,) = samples_of(
                {"tokens": question.tokens[None], "puzzles": None if number is None else [number]}, self.trained
            )
        except DataError as error:
            raise DataError(f"{where}: {error.message}", hint=error.hint) from error
        return replace(sample, labels=question.labels)

    def identifier_of(self, question: Question, where: str) -> int | None:
        """The identifier to ask a puzzle with: the one it was given, or else that of its task; None if the model has
        none for it. Raises DataError for a name that was given and is unknown.
        """
        if not self.trained.config.arch.puzzle_emb_ndim or (question.puzzle is None and question.task is None):
            return None
        if isinstance(question.puzzle, int):
            return question.puzzle
        name = question.task if question.puzzle is None else question.puzzle
        assert name is not None
        number = number_of(name, self._marks)
        if number is None and question.puzzle is not None:
            raise DataError(
                f"{where}: the model knows no puzzle called {name[:80]!r}",
                hint="leave puzzle out to ask with the blank identifier",
            )
        return number

    @property
    def knows_names(self) -> bool:
        """Whether it is recorded which puzzle each identifier stands for."""
        return bool(len(self._marks))

    def copies_of(self, task: str, most: int) -> list[KnownCopy]:
        """An ARC task and its copies that the model was trained on, `most` in all; none for a task it does not know."""
        return known_copies(task, self._marks, most)

    @cached_property
    def _marks(self) -> NDArray[np.uint32]:
        return recorded_marks(self.trained.model.data.num_puzzles, self.trained.identifiers)

    def stream(
        self,
        samples: Iterable[Sample | None],
        policy: Policy | None = None,
        batch: int = BATCH,
        *,
        trace: bool = False,
        first: int = 0,
    ) -> Iterator[Answer]:
        """Answers in the order of the samples (made by `encoded` or `samples_of`), in constant memory: at most `batch`
        rows think at once, and a new one begins as soon as one finishes. None among the samples means that the next has
        not arrived yet; it is waited for once all others are answered. The first row that fails raises its error.
        first: the number of the first sample, which keys the draws of a random selector.
        """
        for finished in self.stream_finished(samples, policy, batch, trace=trace, first=first):
            if finished.error is not None:
                raise finished.error
            assert finished.answer is not None
            yield finished.answer

    def stream_finished(
        self,
        samples: Iterable[Sample | None],
        policy: Policy | None = None,
        batch: int = BATCH,
        *,
        trace: bool = False,
        first: int = 0,
    ) -> Iterator[Finished]:
        """The same, with failed rows among the results; keys count from 0."""
        count = self.beginnings.count
        engine = Engine(self.trained, policy or self.policy(), trace=trace, first=first * count)
        source = _numbered(samples, count)
        begun: dict[int, Best] = {}
        waiting: dict[int, Finished] = {}
        following, waits = 0, False
        while True:
            # Finished rows wait for older ones, so there is a limit: a slow row must not let them pile up without end.
            room = min(batch - len(engine), 4 * batch - len(engine) - len(waiting))
            # While rows think, samples that have not arrived yet are not asked for: the rows would wait with them.
            fresh, waits = ([], True) if waits and len(engine) else _take(source, room)
            through = engine.admit(
                [(key, number) for key, number, _ in fresh],
                [one for _, _, one in fresh],
                [self.beginnings.latents[number] for _, number, _ in fresh],
            )
            if not len(engine) and not through and not fresh and not waits:
                return
            through += engine.step()
            for one in through:
                assert isinstance(one.key, tuple)
                key, number = one.key
                best = begun.setdefault(key, Best(count, self.trained.prices))
                if best.add(number, one):
                    waiting[key] = begun.pop(key).finished(key)
            while following in waiting:
                yield waiting.pop(following)
                following += 1


_Row = tuple[int, int, Sample]  # number of the sample, number of its beginning, and the sample


def _numbered(samples: Iterable[Sample | None], count: int) -> Iterator[_Row | None]:
    key = 0
    for one in samples:
        if one is None:
            yield None
        elif not isinstance(one, Sample):
            raise UsageError(
                f"sample {key} of the stream is a {type(one).__name__}, not a Sample",
                hint="for raw samples: stream(predictor.encoded(samples)); for arrays: stream(samples_of(arrays, "
                "predictor.trained))",
            )
        else:
            shared = one if count == 1 else remembering(one)
            yield from ((key, number, shared) for number in range(count))
            key += 1


def _take(source: Iterator[_Row | None], room: int) -> tuple[list[_Row], bool]:
    """At most `room` rows, and whether the next one has not arrived yet."""
    taken: list[_Row] = []
    for one in islice(source, max(room, 0)):
        if one is None:
            return taken, True
        taken.append(one)
    return taken, False
