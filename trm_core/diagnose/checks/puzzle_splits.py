"""Checks that compare held-out puzzles with those of training: identifiers, copies, and the kind of puzzle."""

from __future__ import annotations

from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.checks.puzzles import NO_PUZZLES, puzzles_of
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.puzzle_examples import shares_apart
from trm_core.diagnose.puzzle_facts import PuzzleFacts


def identifiers_unknown(evidence: Evidence) -> Finding:
    facts = puzzles_of(evidence)
    if facts is None or facts.training is None or facts.judged is None:
        return unknown(NO_PUZZLES if facts is None else "no training or no held-out puzzles to compare")
    share = facts.unknown_identifiers
    said = f"{100 * share:.3g} % of the {facts.held_out} examples have an identifier that no training example has"
    config = evidence.config
    if share < 0.02 or (config is not None and not config.arch.puzzle_emb_ndim):
        return ok(said, unknown=share)
    return Finding(
        Verdict.FAIL if share >= 0.1 and config is not None else Verdict.WARN,  # a model may do without them
        said,
        "possible" if config is None else "likely",
        {"unknown": share},
        "Embeddings of puzzles are learned by identifier, and those of the held-out puzzles stay as initialised. The "
        "model is judged with an input that it has never seen.",
        {"arch.puzzle_emb_ndim": 0},
        "or give puzzles of one kind (Sudokus, mazes) the blank identifier, and include examples of every tested task "
        "in training: trm build-puzzles",
    )


def copies_across_splits(facts: PuzzleFacts) -> Finding:
    """Are held-out puzzles also training puzzles, unchanged or under the symmetries of their kind?"""
    equal, split = facts.twins.equal, facts.held_out or "held-out"
    text, numbers = f"{100 * equal:.3g} % of the {split} samples are also training samples", {"share": equal}
    advice = "build the folder again with trm build-puzzles, which splits before it augments and keeps copies together"
    if equal >= 0.02:
        why = "The model has seen their answers, so accuracy on this split is too good to be true."
        return Finding(Verdict.FAIL, text, numbers=numbers, why=why, advice=advice)
    if facts.symmetric is not None:
        share, inside = facts.symmetric
        numbers |= {"symmetric": share, "symmetric_in_training": inside}
        text += f", {100 * share:.3g} % are turned, mirrored or renamed copies of one"
        if share < 0.05:
            return ok(text, **numbers)
        simple = inside >= 0.5 * share
        return Finding(
            Verdict.FAIL if share >= 0.3 and not simple else Verdict.WARN,
            text + (f", as {100 * inside:.3g} % of the training puzzles are of each other" if simple else ""),
            "possible" if simple else "likely",
            numbers,
            "A model that is trained on augmented puzzles has practically seen these. Puzzles that were augmented "
            "first and split afterwards look like this"
            + (", and so do puzzles so simple that there are few of them." if simple else "."),
            advice=advice,
        )
    if equal == 0:
        return ok(text, **numbers)
    why = "The model has seen their answers."
    return Finding(Verdict.WARN, text, numbers=numbers, why=why, advice=advice)


def splits_of_puzzles(facts: PuzzleFacts) -> Finding:
    """Are held-out puzzles of the same kind as those of training, judging by their tokens?"""
    means = facts.meant
    if facts.compared is None or means is None:
        return unknown("there are no 50 puzzles in training and held out, or too many tokens to compare")
    numbers = {"carried": means.carried, "own": means.other}
    # A split's own meanings are learned from fewer examples, so on sound data they are no better than training's.
    if means.train - means.carried > means.chance and means.other - means.carried > 0.03:
        return Finding(
            Verdict.FAIL,
            f"what a token of the question mostly means in training is the answer in {100 * means.carried:.0f} % of "
            f"the {facts.held_out} cells; what it mostly means in that split itself, in {100 * means.other:.0f} %",
            "likely",
            numbers,
            "The same tokens mean other answers there. They seem to be numbered in another way.",
            advice="build all splits in one go, with one vocabulary",
        )
    moved, token = shares_apart(*facts.compared, facts.puzzles.num_classes or 0)
    numbers |= {"moved": moved}
    text = (
        f"token {token} is {moved:.2g} standard deviations more or less frequent in {facts.held_out} questions than in "
        "those of training"
    )
    # ARC-AGI-2 reaches 1.9: its evaluation tasks are larger than those of training.
    if moved < 2.5:
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL if moved >= 4 else Verdict.WARN,
        text,
        "likely" if moved >= 4 else "possible",
        numbers,
        "Held-out puzzles are of another kind than those the model learned from, so its accuracy there says little. "
        "They may have another difficulty, source or padding.",
        advice="draw both splits from one collection, or treat the held-out puzzles as another task",
    )


IDENTIFIERS = Check(
    "identifiers-unknown",
    ("data", "accuracy"),
    "puzzles: learned in training, at chance held out",
    "ours",
    ("data",),
    identifiers_unknown,
)
