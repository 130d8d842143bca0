"""Turn the curves of every seed into the table: means, intervals, paired differences."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.acquisition.curves import EARLY, Curve, Reference, figures, grid, interval, on_grid

OWN = "trm"  # the family of our model: the common scale of all shares
FIGURES = ("area", "area_early", "way_early", "gap_share", "gap_share_early")


def summarise(seeds: list[dict[str, Any]], num_capsules: int) -> dict[str, Any]:
    """The figures of every method over `seeds`, each {"seed", "curves": [Curve.record()], "all": {family: accuracy}}.

    Shares are measured twice: between `never` and `all` of our model, as one scale for all methods; and, for other
    families, between their own.
    """
    places = grid(num_capsules)
    per_seed = [seed_figures(seed, places) for seed in seeds]
    names = list(dict.fromkeys(name for one in per_seed for name in one))
    methods = {name: over_seeds([one[name] for one in per_seed if name in one]) for name in names}
    ranked = dict(sorted(methods.items(), key=lambda item: -item[1]["area_early"]["mean"]))
    return {
        "early": f"up to {EARLY:.0%} of the {num_capsules} capsules",
        "methods": ranked,
        "comparison": compare(ranked, per_seed),
        "mean_curves": {"opened": places.tolist(), "methods": {n: mean_curve(per_seed, n) for n in ranked}},
    }


def seed_figures(seed: dict[str, Any], places: np.ndarray) -> dict[str, dict[str, Any]]:
    """{method: group, family, curve on the grid, figures on both scales} of one seed."""
    curves = [Curve.from_record(record) for record in seed["curves"]]
    values = {curve.name: on_grid(curve.points, places) for curve in curves}
    references = {
        family: Reference(float(random[0]), everything, random)
        for family, everything in seed["all"].items()
        for random in [values[random_order(family)]]
    }
    found = {}
    for curve in curves:
        line = values[curve.name]
        own = None if curve.family == OWN else figures(line, places, references[curve.family])
        found[curve.name] = {
            "group": curve.group,
            "family": curve.family,
            "line": line,
            **figures(line, places, references[OWN]),
            "own": own,
        }
    return found


def random_order(family: str) -> str:
    """The name of the curve of a family's predictor under a random order."""
    return "random order" if family == OWN else f"{family}, random order"


def over_seeds(values: list[dict[str, Any]]) -> dict[str, Any]:
    first = values[0]
    record = {"group": first["group"], "family": first["family"]}
    record |= {key: interval([one[key] for one in values]) for key in FIGURES}
    if first["own"] is not None:
        record["own"] = {key: interval([one["own"][key] for one in values]) for key in FIGURES if "area" not in key}
    return record


def mean_curve(per_seed: list[dict[str, dict[str, Any]]], name: str) -> dict[str, Any]:
    lines = np.stack([one[name]["line"] for one in per_seed if name in one])
    ends = [interval(list(column)) for column in lines.T]
    return {
        "accuracy": [end["mean"] for end in ends],
        "low": [end["low"] for end in ends],
        "high": [end["high"] for end in ends],
    }


def compare(methods: dict[str, dict[str, Any]], per_seed: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Paired differences of areas over seeds: our best method against the best of other groups, and `learned` against
    every other method.

    The best of a group is the method with the highest mean area on these same test rows, which flatters both sides; the
    differences between `learned` and every single method need no such choice.
    """
    result: dict[str, Any] = {}
    for figure in ("area", "area_early"):
        best = {
            group: max(
                (n for n, m in methods.items() if m["group"] == group),
                key=lambda n: methods[n][figure]["mean"],
                default=None,
            )
            for group in ("ours", "reference", "field", "peeks")
        }
        lines: dict[str, Any] = {"best": best}
        for group in ("reference", "field"):
            if best["ours"] is not None and best[group] is not None:
                lines[f"best of ours minus best of {group}"] = paired(per_seed, best["ours"], best[group], figure)
        if "learned" in methods:
            lines["learned minus"] = {
                name: paired(per_seed, "learned", name, figure) for name in methods if name != "learned"
            }
        result[figure] = lines
    return result


def paired(per_seed: list[dict[str, dict[str, Any]]], one: str, other: str, figure: str) -> dict[str, Any]:
    differences = [seed[one][figure] - seed[other][figure] for seed in per_seed if one in seed and other in seed]
    return interval(differences) | {"values": differences}
