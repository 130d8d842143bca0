"""Checks of the labels: is there something to learn, and do the inputs determine it neither too little nor too well?"""

from __future__ import annotations

import math

from trm_core.diagnose.check import Check, Finding, Verdict, ok, unknown
from trm_core.diagnose.checks.puzzles import answers_moved, puzzles_of
from trm_core.diagnose.evidence import Evidence


def labels_constant(evidence: Evidence) -> Finding:
    share, chance = evidence.file.top_share, evidence.file.chance
    if share is None:
        return unknown("the file has no labels")
    # The list of classes may be that of a larger collection.
    classes, named = evidence.file.classes_that_occur, evidence.file.file.num_classes or 2
    held_out = chance if chance is not None else share
    spread = evidence.file.label_spread
    judged = len(evidence.file.labels.get(evidence.file.held_out or "train", ()))
    known = len(evidence.file.labels["train"])
    noise = 3 * math.sqrt(share * (1 - share) * (1 / max(judged, 1) + 1 / known))
    numbers = {"top_share": share, "chance": held_out, "classes": float(classes), "spread": spread}
    text = f"{100 * share:.1f} % of the training labels are one class of {classes}"
    text += "" if classes == named else f" that occur ({named} are known)"
    # Cells of one puzzle share their colours, and tasks differ in theirs; `splits-differ` compares splits of puzzles.
    more = share - held_out if puzzles_of(evidence) is None else 0.0
    # Two unbalanced classes are a usual task (fraud, spam), but one class with nearly all samples among many is not. An
    # imbalance that belongs to the task also shows in the held-out labels.
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
        why="A model that always gives this class is right as often, and there is little else to learn.",
        advice="check where the labels come from (build.label); trm inspect-dataset FILE counts them",
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
                why="Inputs say less about the labels in training than in the held-out split. The training labels seem "
                "to belong to other samples.",
                advice="check that inputs and labels were not sorted separately before the file was built",
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
            why="In one part of the file inputs say nothing about the labels, elsewhere they do. The labels of that "
            "part seem to be joined in another order.",
            advice="check how the labels of these samples were joined to them",
        )
    if best < train.chance + 4 * error and (held_out is None or best < train.chance + 0.05):
        accuracy = evidence.metrics["eval/accuracy"].last
        if math.isfinite(accuracy) and evidence.file.chance is not None and accuracy > evidence.file.chance + 0.1:
            return ok(text + "; the model does better", **numbers)
        # If one class is far more frequent than the others, always naming it is so accurate that accuracy says little.
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
            why="Inputs seem to say nothing about the labels. Either the labels belong to other samples, or a linear "
            "probe cannot learn anything of this task.",
            advice="check in the source that inputs and labels belong together",
        )
    return ok(text, **numbers)


def labels_leaked(evidence: Evidence) -> Finding:
    if puzzles_of(evidence) is not None:
        return unknown("tokens have no coordinates that could give a label away; see answers-copied")
    leak = evidence.file.leak
    if leak is None:
        return unknown("labels are not classes that single coordinates could tell")
    betrayal = evidence.file.betrayal
    if betrayal is not None:
        return Finding(
            Verdict.FAIL,
            f"{100 * betrayal.train:.0f} % of the variance of dimension {betrayal.dimension} of the sketches lies "
            f"between the classes in training, and {100 * betrayal.held_out:.0f} % in the {evidence.file.held_out} "
            "split; the other dimensions keep theirs",
            "likely",
            {"train": betrayal.train, "held_out": betrayal.held_out, "dimension": float(betrayal.dimension)},
            "This column knows the labels of the training samples, but not of others: it was computed from them, as "
            "target encoding does, or is a number that was assigned with them.",
            advice="leave that column out of the inputs, or fit it on other samples than those it is used for",
        )
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
            why="One number of the sketches, and no other, orders the samples by their labels. A label, or a number "
            "assigned in the order of labels, seems to have got into the inputs.",
            advice="leave that column out of the inputs, and build the file again",
        )
    # In an easy task several coordinates reveal each class; a label that was copied in shows in a single one.
    if leak.told < 0.8 or leak.told_without > 0.5 * leak.told or len(leak.coordinates) > 1.2 * classes:
        return ok(text, **numbers)
    where = ", ".join(f"capsule {capsule} dimension {dim}" for capsule, dim in leak.coordinates[:3])
    return Finding(
        Verdict.FAIL,
        f"{text} ({where})",
        sure="likely",
        numbers=numbers,
        why="Nearly every class can be read off one number, and off no other. A label seems to have got into the "
        "inputs.",
        advice="leave the label's column out of the inputs, and build the file again",
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
)
