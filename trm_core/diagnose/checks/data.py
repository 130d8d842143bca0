"""Checks of the data: labels, detail, twins."""

from __future__ import annotations

import math
from typing import Any

from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.checks.puzzle_splits import copies_across_splits
from trm_core.diagnose.checks.puzzles import answers_moved, puzzles_of
from trm_core.diagnose.evidence import Evidence

_APART = "build the data again with trm build-capsules or trm build-puzzles, which keep equal samples in one split"


def children_missing(evidence: Evidence) -> Finding:
    children, config = evidence.file.file.num_children, evidence.config
    if children:
        blank = evidence.file.blank or 0.0
        filler = evidence.file.filler or 0.0
        text = f"{children} children per capsule, {100 * blank:.0f} % of the capsules have none but zeros"
        if filler > blank + 0.1:
            text += f", {100 * filler:.0f} % have the same ones as most samples in that place"
        if max(blank, filler) < 0.6:
            return ok(text, children=children, blank=blank, filler=filler)
        return Finding(
            Verdict.FAIL if max(blank, filler) > 0.9 else Verdict.WARN,
            text,
            numbers={"children": float(children), "blank": blank, "filler": filler},
            why="Opening such a capsule shows nothing. Padding, and values that were filled in, belong into the mask, "
            "so that no policy pays for them.",
            advice="look at the encoder that wrote them (trm inspect-dataset FILE names it)",
        )
    if puzzles_of(evidence) is not None:
        return ok("cells of puzzles are seen whole, there is nothing to open", children=0)
    text = f"{evidence.file.file.path} has no children, so EXPAND has nothing to open"
    if config is None:
        return ok(text, children=0)
    if config.arch.enable_capsule_expansion is not True and config.dqn.enabled is not True:
        return ok(f"{text}; the config does not ask for it", children=0)
    return Finding(
        Verdict.FAIL,
        text,
        numbers={"children": 0},
        why="EXPAND shows the children of a capsule. Without them a policy can only choose when to halt.",
        advice="build the file again with children: trm build-capsules SOURCE --num-children 4",
    )


def labels_constant(evidence: Evidence) -> Finding:
    share, chance = evidence.file.top_share, evidence.file.chance
    if share is None:
        return unknown("the file has no labels")
    # A list of classes may be that of a larger collection.
    classes, named = evidence.file.classes_that_occur, evidence.file.file.num_classes or 2
    held_out = chance if chance is not None else share
    spread = evidence.file.label_spread
    judged = len(evidence.file.labels.get(evidence.file.held_out or "train", ()))
    known = len(evidence.file.labels["train"])
    noise = 3 * math.sqrt(share * (1 - share) * (1 / max(judged, 1) + 1 / known))
    numbers = {"top_share": share, "chance": held_out, "classes": float(classes), "spread": spread}
    text = f"{100 * share:.1f} % of the training labels are one class of {classes}"
    text += "" if classes == named else f" that occur ({named} are known)"
    # The cells of a puzzle have their colours together, and tasks differ in theirs: `splits-differ` compares puzzles.
    more = share - held_out if puzzles_of(evidence) is None else 0.0
    # Two unbalanced classes are a task (fraud, spam); of many classes one that takes nearly all is hardly. What is
    # true of the task is true of the held-out labels too.
    if share > 0.995 or (classes > 2 and spread < 0.15) or (share > 0.5 and more > max(0.25, noise)):
        verdict = Verdict.FAIL
    elif share > 0.95 or (classes > 2 and spread < 0.4) or (share > 0.3 and more > max(0.1, noise)):
        verdict = Verdict.WARN
    else:
        return ok(text, **numbers)
    other = "" if math.isclose(share, held_out, abs_tol=0.05) else f", but {100 * held_out:.1f} % of the held-out ones"
    return Finding(
        verdict,
        text + other,
        sure="certain" if share > 0.995 else "likely",
        numbers=numbers,
        why="A model that always names this class is right as often, and there is little else to learn.",
        advice="look at where the labels come from (build.label); trm inspect-dataset FILE counts them",
    )


def labels_shuffled(evidence: Evidence) -> Finding:
    puzzles = puzzles_of(evidence)
    if puzzles is not None:
        return answers_moved(puzzles)
    train, held_out = evidence.file.probe, evidence.file.probe_held_out
    if train is None:
        return unknown("too few labelled samples for a probe")
    best = max(train.sketches, train.detail or 0.0)
    error = math.sqrt(train.chance * (1 - train.chance) / train.cases) + 1e-9
    numbers = {"probe": best, "chance": train.chance}
    text = f"a linear probe of the training samples is right on {100 * best:.1f} % (chance {100 * train.chance:.1f} %)"
    if held_out is not None and held_out.cases >= 100:
        other = max(held_out.sketches, held_out.detail or 0.0)
        numbers |= {"probe_held_out": other}
        text += f", of the held-out ones on {100 * other:.1f} %"
        gain, theirs = best - train.chance, other - held_out.chance
        spread = math.sqrt(other * (1 - other) / held_out.cases + best * (1 - best) / train.cases) + 1e-9
        if theirs > 0.1 and gain < 0.6 * theirs and theirs - gain > 4 * spread:
            return Finding(
                Verdict.FAIL if gain < 0.5 * theirs else Verdict.WARN,
                text,
                sure="likely",
                numbers=numbers,
                why="Inputs say less about the labels in training than in the held-out split. "
                "Training labels that were moved to other samples look like this.",
                advice="check that inputs and labels were not ordered apart before the file was built",
            )
    broken = train.broken
    if broken is not None:
        return Finding(
            Verdict.FAIL if broken.share >= 0.2 else Verdict.WARN,
            f"a linear probe of the training samples is right on {100 * broken.inside:.0f} % of those from "
            f"{100 * broken.begin:.0f} to {100 * broken.end:.0f} % of the file, and on {100 * broken.outside:.0f} % of "
            "the others",
            sure="likely",
            numbers=numbers | {"inside": broken.inside, "outside": broken.outside},
            why="In one stretch of the file inputs say nothing about the labels, elsewhere they do. "
            "A part whose labels were joined in another order looks like this.",
            advice="check how the labels of these samples were joined to them",
        )
    if best < train.chance + 4 * error and (held_out is None or best < train.chance + 0.05):
        accuracy = evidence.metrics["eval/accuracy"].last
        if math.isfinite(accuracy) and evidence.file.chance is not None and accuracy > evidence.file.chance + 0.1:
            return ok(text + "; the model does better", **numbers)
        # Where one class is far more frequent than the others, naming it is right so often that accuracy says little.
        apart = evidence.file.told_apart
        numbers |= {"told_apart": apart}
        if apart > 0.65:
            return ok(
                f"{text}; members of a class score higher for it than others in {100 * apart:.0f} % of pairs", **numbers
            )
        return Finding(
            Verdict.WARN,
            text,
            sure="possible",
            numbers=numbers,
            why="Inputs seem to say nothing about the labels. Either the labels belong to other samples, or the task "
            "is one that no linear probe can begin.",
            advice="check in the source that inputs and labels belong together",
        )
    return ok(text, **numbers)


def labels_leaked(evidence: Evidence) -> Finding:
    if puzzles_of(evidence) is not None:
        return unknown("tokens are no coordinates that could give a label away; see answers-copied")
    leak = evidence.file.leak
    if leak is None:
        return unknown("labels are no classes that single coordinates could tell")
    numbers = {"told": leak.told, "told_without": leak.told_without, "coordinates": float(len(leak.coordinates))}
    text = (
        f"single coordinates of the sketches tell {100 * leak.told:.0f} % of the classes, "
        f"{100 * leak.told_without:.0f} % without these {len(leak.coordinates)}"
    )
    classes = evidence.file.file.num_classes or 0
    (best, second), (lift, other) = leak.ordered, leak.lifts
    numbers |= {"ordered": best, "ordered_second": second, "alike": leak.alike}
    if lift > 0.4 and other < 0.4 * lift:
        return Finding(
            Verdict.FAIL if lift > 0.85 else Verdict.WARN,
            f"sorted by capsule {leak.at[0]} dimension {leak.at[1]}, {100 * best:.0f} % of the samples have the label "
            f"of the one before, {100 * second:.0f} % in the next best coordinate, and {100 * leak.alike:.0f} % in any "
            "order",
            sure="likely" if lift > 0.85 else "possible",
            numbers=numbers,
            why="One number of the sketches orders the samples by their labels, and no other does. "
            "A label, or a number given in the order of labels, that got into the inputs looks like this.",
            advice="leave that column out of the inputs, and build the file again",
        )
    # An easy task is told by several coordinates for a class; a label that was copied in by one.
    if leak.told < 0.8 or leak.told_without > 0.5 * leak.told or len(leak.coordinates) > 1.2 * classes:
        return ok(text, **numbers)
    where = ", ".join(f"capsule {capsule} dimension {dim}" for capsule, dim in leak.coordinates[:3])
    return Finding(
        Verdict.FAIL,
        f"{text} ({where})",
        sure="likely",
        numbers=numbers,
        why="Nearly every class can be read off one number, and off no other. "
        "A label that got into the inputs looks like this.",
        advice="leave the label's column out of the inputs, and build the file again",
    )


def children_equal_sketch(evidence: Evidence) -> Finding:
    config = evidence.config
    if config is not None and config.arch.enable_capsule_expansion is False and evidence.file.file.num_children:
        return ok("EXPAND is off, so nothing is paid for children")
    return _children_against_sketch(evidence)


def children_tell_nothing(evidence: Evidence) -> bool:
    """Whether it is right to leave them closed."""
    return _children_against_sketch(evidence).verdict is Verdict.FAIL


def _left_closed(evidence: Evidence) -> dict[str, Any]:
    """Overrides with which nothing is opened, nor a policy learned, nor asked for what only a policy can."""
    fix: dict[str, Any] = {"arch.enable_capsule_expansion": False, "dqn.enabled": "auto"}
    config = evidence.config
    if config is not None and config.training.predictor_steps is not None:
        fix["training.predictor_steps"] = None
    if config is not None and config.dqn.enable_curiosity:
        fix["dqn.enable_curiosity"] = False
    return fix


def _children_against_sketch(evidence: Evidence) -> Finding:
    detail, probe = evidence.file.detail, evidence.file.probe
    if detail is None:
        return unknown("the file has no children")
    numbers = {"detail": detail}
    text = f"children differ from their sketch by {100 * detail:.3g} % of their size"
    fail = Finding(
        Verdict.FAIL,
        text,
        numbers=numbers,
        why="Opening a capsule shows what its sketch has shown already, so no policy can gain by it.",
        fix=_left_closed(evidence),
        advice="build sketches that are coarser than the children: trm build-capsules SOURCE --sketch leading "
        "--sketch-dims N",
    )
    if detail < 0.01:
        return fail
    told = evidence.file.told
    numbers["told"] = told
    spread = 0.0
    if probe is not None and probe.detail is not None:
        spread = math.sqrt(2 * probe.detail * (1 - probe.detail) / probe.cases) + 1e-9
    # Of few different sentences sketches tell which they are, though not what they say: a probe that gains knows more.
    gains = probe is not None and (probe.detail or 0.0) - probe.sketches > max(0.05, 3 * spread)
    if told > 0.5 and not gains:
        return Finding(
            Verdict.FAIL,
            f"{text}, but a linear map tells {100 * told:.0f} % of them from sketches of their capsule and the next",
            "likely",
            numbers,
            fail.why,
            fail.fix,
            "children that were interpolated from sketches look so: build them from the full detail",
        )
    if probe is None or probe.detail is None:
        return ok(text, **numbers)
    numbers |= {"probe_sketches": probe.sketches, "probe_children": probe.detail}
    text += f"; a linear probe gains {100 * (probe.detail - probe.sketches):+.1f} points by them"
    if detail < 0.1 and probe.detail < probe.sketches + 2 * spread:
        return Finding(Verdict.FAIL, text, "likely", numbers, fail.why, fail.fix, fail.advice)
    # Where sketches alone nearly suffice there is little to gain, which is no fault of the children.
    nothing = probe.detail + 2 * spread < probe.sketches + 0.05
    little = detail < 0.5 and probe.detail - probe.sketches < 0.15 * (1 - probe.sketches)
    if (nothing or little) and probe.chance + 0.05 < probe.sketches < 0.97:
        return Finding(
            Verdict.WARN,
            text,
            "possible",
            numbers,
            "A policy that buys them would pay for little, unless they help in ways that no linear probe sees.",
            fail.fix,
            fail.advice,
        )
    return ok(text, **numbers)


def duplicates_across_splits(evidence: Evidence) -> Finding:
    puzzles = puzzles_of(evidence)
    if puzzles is not None:
        return copies_across_splits(puzzles)
    twins = evidence.file.twins
    split = evidence.file.held_out or "held-out"
    text = f"{100 * twins.equal:.3g} % of the {split} samples are also training samples"
    numbers = {"share": twins.equal}
    found = []
    for what, copies, name in (
        ("are nearly copies of a training sample", twins.copies, "near"),
        ("have half of their capsules from one training sample", twins.shared, "shared"),
    ):
        numbers |= {name: copies.near, f"{name}_within": copies.within}
        if copies.are_copies and copies.near >= 0.05:
            labels = "" if math.isnan(copies.agree) else f", labels agree in {100 * copies.agree:.0f} % of these"
            found.append(
                f"{100 * copies.near:.0f} % of the {split} samples {what} ({100 * copies.within:.0f} % of the training "
                f"samples{labels})"
            )
    if twins.equal < 0.02 and found:
        most = max(copies.near for copies in (twins.copies, twins.shared) if copies.are_copies)
        return Finding(
            Verdict.FAIL if most >= 0.1 else Verdict.WARN,
            "; ".join(found),
            "likely",
            numbers,
            "The model has all but seen their answers, so accuracy on this split is too good to be true. "
            "A collection that was augmented, or has many versions of one sample, and was split afterwards looks so.",
            advice="keep all versions of one sample in one split: build from the originals, augment the training split",
        )
    if twins.equal < 0.02 and twins.elsewhere:
        other, share = max(twins.elsewhere.items(), key=lambda item: item[1])
        return Finding(
            Verdict.FAIL if share >= 0.02 else Verdict.WARN,
            f"{text}, {100 * share:.3g} % are {other} samples too",
            numbers=numbers | {"elsewhere": share},
            why=f"What is chosen by accuracy on {other} has seen their answers, so accuracy on {split} is too good.",
            advice=_APART,
        )
    if twins.equal == 0:
        if twins.copies.near >= 0.05:
            text += f"; {100 * twins.copies.near:.0f} % lie near to one, as training samples do to each other"
        return ok(text, **numbers)
    return Finding(
        Verdict.FAIL if twins.equal >= 0.02 else Verdict.WARN,
        text,
        numbers=numbers,
        why="The model has seen their answers, so accuracy on this split is too good to be true.",
        advice=_APART,
    )


CHECKS = (
    Check(
        "labels-constant",
        ("data", "accuracy"),
        "accuracy is high from the start, or never moves",
        "pipeline.md Issue 8",
        ("data",),
        labels_constant,
    ),
    Check(
        "labels-leaked",
        ("data", "accuracy"),
        "accuracy is perfect, and EXPAND never pays",
        "ours",
        ("data",),
        labels_leaked,
    ),
    Check(
        "labels-shuffled",
        ("data", "accuracy"),
        "training accuracy does not carry over",
        "pipeline.md Issue 8",
        ("data",),
        labels_shuffled,
    ),
    Check(
        "duplicate-across-splits",
        ("data", "accuracy"),
        "held-out accuracy is too good",
        "ours",
        ("data",),
        duplicates_across_splits,
    ),
    Check(
        "children-missing",
        ("data", "capsule-state", "expansion"),
        "KeyError: capsule_state; EXPAND does nothing",
        "pipeline.md Issue 1",
        ("data",),
        children_missing,
    ),
    Check(
        "children-equal-sketch", ("data", "expansion"), "EXPAND never pays", "ours", ("data",), children_equal_sketch
    ),
)
