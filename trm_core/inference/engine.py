"""Rows that think together: each reasoning step is one call of the model for all of them, whichever step each is at.

A row leaves when it halts, and another may take its place at the next step (continuous batching over reasoning steps),
so a row that needs one step never waits for one that needs ten. The children of a capsule are requested only when it is
opened.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trm_core.dqn.actions import Action, valid_actions
from trm_core.errors import DataError
from trm_core.evaluation.policies import Policy, Situation
from trm_core.inference.samples import Answer, Decision, Sample, checked_detail, names_of
from trm_core.inference.trained import Trained
from trm_core.model.capsule_state import CapsuleState
from trm_core.model.probabilities import log_probabilities
from trm_core.model.q_head import largest_probability
from trm_core.model.rows import join_rows, take_rows

Latents = tuple[Tensor, Tensor]  # z_H and z_L of one row, [K, hidden] each


@dataclass(frozen=True)
class Rows:
    """What one reasoning step hands to the next, for B rows."""

    z_H: Tensor  # [B, K, hidden]
    z_L: Tensor  # [B, K, hidden]
    q_memory: Tensor  # [B, recurrent width]
    steps: Tensor  # [B] int64: steps done
    price: Tensor  # [B]
    number: Tensor  # [B] int64: how many rows were admitted before
    capsules: CapsuleState


@dataclass
class Thought:
    """The history of one row."""

    key: Hashable
    sample: Sample
    opened: list[int]
    decisions: list[Decision]


@dataclass(frozen=True)
class Finished:
    """A row that has left: with its answer, or with what was wrong with its detail."""

    key: Hashable
    answer: Answer | None
    error: DataError | None = None


class Engine:
    """Not thread-safe: each thread has an engine of its own, and they share the model.

    trace: keep the probabilities after every step in the decisions. first: the number of the first row admitted, for
    random draws that continue those of an earlier engine.
    """

    def __init__(self, trained: Trained, policy: Policy, *, trace: bool = False, first: int = 0) -> None:
        self.trained, self.policy, self.trace = trained, policy, trace
        self.prices = torch.as_tensor(trained.prices, dtype=torch.float32, device=trained.device)
        self.rows: Rows | None = None
        self.thoughts: list[Thought] = []
        self.admitted = first

    def __len__(self) -> int:
        """Rows in flight."""
        return len(self.thoughts)

    @torch.no_grad()
    def admit(
        self, keys: Sequence[Hashable], samples: Sequence[Sample], latents: Sequence[Latents | None] = ()
    ) -> list[Finished]:
        """Let samples, as `samples_of` makes them for this model, begin at the next step. Those whose detail is refused
        already come back at once. latents: where each begins; missing or None: as the model was trained.
        """
        if not samples:
            return []
        fresh = self._begin(samples, latents)
        thoughts = [Thought(key, sample, [], []) for key, sample in zip(keys, samples, strict=True)]
        if self.policy.selects and self.trained.reads_detail:
            wanted = fresh.capsules.can_open()
        else:
            wanted = self.policy.open_first(fresh.capsules)
        fresh, failed = self._fetch(fresh, thoughts, wanted)
        opening = self.policy.open_first(fresh.capsules)
        for thought, which in zip(thoughts, _indices(opening & fresh.capsules.can_open()), strict=True):
            thought.opened += which
        fresh = replace(fresh, capsules=fresh.capsules.opened(opening))
        self.rows = fresh if self.rows is None else join_rows([self.rows, fresh])
        self.thoughts += thoughts
        self.admitted += len(samples)
        first = len(self.thoughts) - len(thoughts)
        return self._drop({first + place: error for place, error in failed.items()})

    @torch.no_grad()
    def step(self) -> list[Finished]:
        """Take one reasoning step with every row; returns the rows that finish."""
        if self.rows is None or not self.thoughts:
            return []
        trained, model, rows = self.trained, self.trained.model, self.rows
        done = rows.steps + 1
        # Steps beyond those of training look to the model like its last one.
        seen_as = done.clamp(max=model.max_steps)
        output = model(rows.z_H, rows.z_L, rows.capsules, seen_as, rows.price, rows.q_memory)
        valid = valid_actions(rows.capsules, done, trained.max_steps, model.q_head.num_actions, trained.dqn.budget)
        action, opened = self.policy.decide(
            Situation(model, trained.dqn, output, rows.capsules, done, rows.number, valid)
        )
        confidence = largest_probability(output.q_state)
        numbers = torch.stack(
            [confidence, output.halt_logit.sigmoid(), output.cycles.float(), done.float()], 1
        ).tolist()
        shares = self._shares(output.logits) if self.trace else [None] * len(numbers)
        for thought, chosen, which, values, seen, beliefs in zip(
            self.thoughts, action.tolist(), _indices(opened), output.q_values.tolist(), numbers, shares, strict=True
        ):
            thought.opened += which
            thought.decisions.append(
                Decision(
                    step=int(seen[3]),
                    action=Action(chosen).name.lower(),
                    opened=tuple(which),
                    confidence=seen[0],
                    halt_probability=seen[1],
                    q_values=tuple(values),
                    cycles=int(seen[2]),
                    beliefs=beliefs,
                )
            )
        halting = action == Action.HALT
        finished = self._answers(output.logits, output.halt_logit, halting)
        self.rows = replace(
            rows,
            z_H=model.next_z_H(output.z_H, opened),
            z_L=output.z_L,
            q_memory=output.q_memory,
            steps=done,
            capsules=rows.capsules,
        )
        self._keep((~halting).nonzero().squeeze(1))
        opened = opened[~halting]
        self.rows, failed = self._fetch(self.rows, self.thoughts, opened)
        self.rows = replace(self.rows, capsules=self.rows.capsules.opened(opened))
        return finished + self._drop(failed)

    def _begin(self, samples: Sequence[Sample], latents: Sequence[Latents | None]) -> Rows:
        trained, model, device = self.trained, self.trained.model, self.trained.device
        n, shape = len(samples), model.data

        def stacked(values: list[Any]) -> Tensor:
            return torch.as_tensor(np.stack(values), device=device)

        mask = checksums = children = None
        if trained.masked:
            every = np.ones(shape.num_capsules, np.bool_)
            mask = stacked([every if sample.mask is None else sample.mask for sample in samples])
        if trained.can_expand and trained.dqn.expansion_selector == "checksum":
            checksums = stacked([sample.checksums for sample in samples])
        if shape.num_children:
            # Zero until they are opened: the model looks at no others, and they are not requested.
            children = torch.zeros(n, shape.num_capsules, shape.num_children, shape.dim, device=device)
        parents = stacked([sample.parents for sample in samples]) if shape.has_parents else None
        sketches = stacked([sample.sketches for sample in samples])
        puzzles = stacked([np.int64(sample.puzzle) for sample in samples]) if shape.tokens else None
        capsules = CapsuleState.closed(sketches, children, checksums, mask, self.prices, parents, puzzles)
        z_H, z_L = model.first_latents(n)
        for place, other in enumerate(latents):
            if other is not None:
                z_H, z_L = z_H.clone(), z_L.clone()
                z_H[place], z_L[place] = other
        return Rows(
            z_H=z_H,
            z_L=z_L,
            q_memory=model.first_q_memory(n),
            steps=torch.zeros(n, dtype=torch.int64, device=device),
            price=torch.full((n,), self.policy.price, device=device),
            number=torch.arange(self.admitted, self.admitted + n, device=device),
            capsules=capsules,
        )

    def _fetch(self, rows: Rows, thoughts: Sequence[Thought], wanted: Tensor) -> tuple[Rows, dict[int, DataError]]:
        """Request the children of the capsules `wanted` [B, k] and put them in; also the rows that failed, and why."""
        failed: dict[int, DataError] = {}
        asked = wanted.nonzero().tolist()
        if not asked:
            return rows, failed
        assert rows.capsules.children is not None
        children = rows.capsules.children.clone()
        for place, capsule in asked:
            source = thoughts[place].sample.children
            if place in failed:
                continue
            if source is None:
                failed[place] = DataError(f"the model opens capsule {capsule}, but the sample has no children")
                continue
            try:
                detail = checked_detail(source(capsule), capsule, self.trained.model.data)
            except DataError as error:
                failed[place] = error
                continue
            children[place, capsule] = torch.from_numpy(detail).to(children.device)
        return replace(rows, capsules=replace(rows.capsules, children=children)), failed

    def _shares(self, logits: Tensor) -> NDArray[np.float32]:
        """The probabilities [B, P, V]."""
        return log_probabilities(logits, self.trained.model.probabilities).exp().cpu().numpy()

    def _answers(self, logits: Tensor, halt_logits: Tensor, halting: Tensor) -> list[Finished]:
        places = halting.nonzero().squeeze(1)
        if len(places) == 0:
            return []
        assert self.rows is not None
        spent, sure = self.rows.capsules.spent[places].tolist(), halt_logits[places].tolist()
        finished = []
        for place, probabilities, paid, halt in zip(
            places.tolist(), self._shares(logits[places]), spent, sure, strict=True
        ):
            thought = self.thoughts[place]
            prediction = tuple(int(number) for number in probabilities.argmax(-1))
            answer = Answer(
                prediction=prediction,
                label=names_of(prediction, self.trained.class_names),
                confidence=thought.decisions[-1].confidence,
                probabilities=probabilities,
                steps=len(thought.decisions),
                opened=tuple(thought.opened),
                spent=paid,
                decisions=tuple(thought.decisions),
                halt_logit=halt,
            )
            finished.append(Finished(thought.key, answer))
        return finished

    def _drop(self, failed: dict[int, DataError]) -> list[Finished]:
        """Let rows leave whose detail could not be obtained."""
        if not failed:
            return []
        finished = [Finished(self.thoughts[place].key, None, error) for place, error in failed.items()]
        keep = [place for place in range(len(self.thoughts)) if place not in failed]
        self._keep(torch.tensor(keep, dtype=torch.int64, device=self.trained.device))
        return finished

    def _keep(self, places: Tensor) -> None:
        assert self.rows is not None
        if len(places) == len(self.thoughts):
            return
        self.rows = take_rows(self.rows, places)
        self.thoughts = [self.thoughts[place] for place in places.tolist()]


def _indices(which: Tensor) -> list[list[int]]:
    """[B, k] bool -> the capsules of each row."""
    found: list[list[int]] = [[] for _ in range(len(which))]
    for row, capsule in which.nonzero().tolist():
        found[row].append(capsule)
    return found
