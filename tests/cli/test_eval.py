"""`trm eval` as a user runs it: every policy, prices, splits, files, plots, thresholds, damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from trm_core.data.store import CapsuleWriter
from trm_core.evaluation.overrides import OF_AN_EVALUATION, overridden

EVERY = ["learned", "threshold", "never", "all", "random", "act"]


def merged(document: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`document` with the values of `change`, key by key where both are mappings."""
    both = {key: merged(document[key], value) if isinstance(value, dict) else value for key, value in change.items()}
    return {**document, **both}


def test_without_options_it_repeats_the_runs_own_evaluation(trained_run: Path) -> None:
    done = tiny.invoke("eval", trained_run, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    own = json.loads((trained_run / "evaluation.json").read_text())
    assert document["scores"] == own["scores"]
    assert document["data"] == own["data"]
    assert document["chance"] == own["chance"]


def test_every_policy_split_and_price(trained_run: Path) -> None:
    options = ["--split", "test", "--policy", ",".join(EVERY), "--price", "0.001,10", "--confidence", "0.5"]
    done = tiny.invoke("eval", trained_run, "--json", *options)
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)["scores"]
    assert [(s["policy"], s["setting"]) for s in scores] == [
        ("learned", 0.001), ("learned", 10.0), ("threshold", 0.5), ("never", None), ("all", None),
        ("random", 0.001), ("random", 10.0), ("act", None),
    ]  # fmt: skip
    assert {s["rows"] for s in scores} == {30}
    by_name = {(s["policy"], s["setting"]): s for s in scores}
    for level in (0.001, 10.0):
        assert by_name["random", level]["opened"] == by_name["learned", level]["opened"]
        assert by_name["random", level]["steps"] == by_name["learned", level]["steps"]
    assert by_name["never", None]["opened"] == 0
    assert by_name["all", None]["opened"] == tiny.K
    for score in scores:
        assert 0 <= score["low"] <= score["accuracy"] <= score["high"] <= 1


def test_table_for_humans(trained_run: Path) -> None:
    done = tiny.run_trm("eval", str(trained_run), "--policy", "never", "--split", "train", cwd=trained_run.parent)
    assert done.returncode == 0, done.stderr
    assert "96 samples" in done.stdout
    assert "chance:" in done.stdout
    assert "\r" not in done.stderr


def test_min_accuracy_decides_the_exit_code(trained_run: Path) -> None:
    missed = tiny.invoke("eval", trained_run, "--policy", "never", "--min-accuracy", "1")
    assert "trm eval --split test" in missed.stdout, "this was the validation split"
    assert missed.returncode == 1
    assert "is below 1.0" in missed.stderr
    assert "never" in missed.stdout, "the table is printed all the same"
    assert tiny.invoke("eval", trained_run, "--policy", "never", "--min-accuracy", "0").returncode == 0
    percent = tiny.invoke("eval", trained_run, "--policy", "never", "--min-accuracy", "90")
    assert (percent.returncode, percent.stdout) == (2, ""), "said before it evaluates"


def test_plot_draws_both_curves(trained_run: Path, tmp_path: Path) -> None:
    picture = tmp_path / "pareto.png"
    done = tiny.invoke("eval", trained_run, "--json", "--plot", picture, "--price", "0.01,0.1")
    assert done.returncode == 0, done.stderr
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 5000
    curves = json.loads(done.stdout)["curves"]
    assert [s["setting"] for s in curves["learned"]] == [0.01, 0.1]
    assert len(curves["threshold"]) >= 5
    opened = [s["opened"] for s in curves["threshold"]]
    assert opened == sorted(opened), "the surer it has to be, the more it opens"


def test_another_file(trained_run: Path, tmp_path: Path) -> None:
    fits = tiny.write_capsules(tmp_path / "fits.h5", {"test": 25}, seed=9)
    done = tiny.invoke("eval", trained_run, "--json", "--data", fits, "--policy", "never")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["data"] == {"path": str(fits), "split": "test", "splits": ["test"]}
    assert document["scores"][0]["rows"] == 25


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": 5}, "num_capsules=5"),
        ({"dim": 4}, "dim=4"),
        ({"m": 3}, "num_children=3"),
        ({"m": 0}, "num_children=0"),
        ({"classes": 4}, "num_classes=4"),
        ({"label_rank": 2}, "label_rank=2"),
        ({"prices": [1.0, 2.0, 0.5, 0.5]}, "has other capsule prices"),
    ],
)
def test_a_file_that_does_not_fit(changes: dict[str, Any], words: str, trained_run: Path, tmp_path: Path) -> None:
    if changes.get("m") == 0:
        changes = {**changes, "checksum_dim": 0}
    other = tiny.write_capsules(tmp_path / "other.h5", {"test": 20}, **changes)
    done = tiny.invoke("eval", trained_run, "--data", other)
    assert done.returncode == 4
    assert words in done.stderr
    assert str(other) in done.stderr


def test_padding_that_training_had_not_is_refused(trained_run: Path, tmp_path: Path) -> None:
    padded = tmp_path / "padded.h5"
    sizes = {"num_capsules": tiny.K, "dim": tiny.D, "num_children": tiny.M}
    with CapsuleWriter(padded, **sizes, with_mask=True) as writer:
        mask = np.ones((9, tiny.K), np.bool_)
        mask[0, -1] = False
        children = np.zeros((9, tiny.K, tiny.M, tiny.D))
        writer.append(
            "test", {"sketches": children[:, :, 0], "children": children, "labels": np.arange(9) % 3, "mask": mask}
        )
        writer.close({"task": "classes", "num_classes": tiny.CLASSES, "kind": "arrays"})
    done = tiny.invoke("eval", trained_run, "--data", padded)
    assert done.returncode == 4
    assert "has padding capsules" in done.stderr


def test_wrong_requests(trained_run: Path, tmp_path: Path) -> None:
    for arguments, code, words in (
        (["--policy", "best"], 2, "unknown policy 'best'"),
        (["--split", "nothing"], 2, "no split 'nothing'"),
        (["--checkpoint", "first"], 2, "no checkpoint 'first'"),
        (["--price", "-1"], 2, "--price"),
        (["--price", "cheap"], 2, "cheap"),
        (["--data", str(tmp_path / "none.h5")], 4, "none.h5"),
        (["--plot", str(tmp_path / "curve.txt")], 2, "curve.txt"),
    ):
        done = tiny.invoke("eval", trained_run, *arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    assert tiny.invoke("eval", tmp_path).returncode == 4
    assert list(tmp_path.iterdir()) == []


def test_best_checkpoint(trained_run: Path) -> None:
    best = (trained_run / "checkpoints" / "best").read_text().strip()
    done = tiny.invoke("eval", trained_run, "--json", "--checkpoint", "best", "--policy", "never")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == int(best.removeprefix("step_"))


def test_damaged_checkpoints(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    newest, *older = sorted((run / "checkpoints").glob("step_*"), reverse=True)
    weights = newest / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = tiny.invoke("eval", run, "--json", "--policy", "never")
    assert done.returncode == 0, done.stderr
    assert "going back one checkpoint" in done.stderr
    assert json.loads(done.stdout)["step"] == int(older[0].name.removeprefix("step_"))
    file = json.loads((run / "dataset.json").read_text())["eval"]["path"]
    for command in (["predict", file, "--model", run, "--out", "-"], ["export", run, "--out", tmp_path / "exported"]):
        done = tiny.invoke(*command)
        assert done.returncode == 0, done.stderr
        assert "going back one checkpoint" in done.stderr
    for folder in older:
        (folder / "state.json").write_text("{}")
    done = tiny.invoke("eval", run)
    assert done.returncode == 4
    assert "no checkpoint that verifies" in done.stderr
    assert str(weights) in done.stderr
    assert done.stdout == ""


def test_settings_that_the_weights_fit_may_be_others(trained_run: Path, tmp_path: Path) -> None:
    greedy = ["--policy", "threshold", "--confidence", "1"]
    overrides = ["dqn.budget=1", "arch.H_cycles=2"]
    as_trained = json.loads(tiny.invoke("eval", trained_run, "--json", *greedy).stdout)
    done = tiny.invoke("eval", *overrides, trained_run, "--json", *greedy)
    assert done.returncode == 0, done.stderr
    assert "dqn.budget: None -> 1.0" in done.stderr
    document = json.loads(done.stdout)
    assert (as_trained["overrides"], document["overrides"]) == ([], overrides)
    before, after = as_trained["scores"][0], document["scores"][0]
    assert (before["opened"], after["opened"]) == (2, 1)
    assert (before["cycles"], after["cycles"]) == (3, 6)

    folder = tmp_path / "exported"
    done = tiny.invoke("export", trained_run, "dqn.budget=1", "--out", folder)
    assert done.returncode == 0, done.stderr
    file = json.loads((trained_run / "dataset.json").read_text())["eval"]["path"]
    done = tiny.invoke("predict", file, "--model", folder, *greedy, "--out", tmp_path / "answers.jsonl")
    assert "1.00 capsules opened" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["arch.hidden_size=8"], 3, "trained with other settings, which cannot be changed here:"),
        (["data.path=x.h5"], 3, "what can be changed: arch.H_cycles"),
        (["arch.max_steps=5"], 3, "there is --max-steps for arch.max_steps"),
        (["dqn.bugdet=3"], 3, "did you mean dqn.budget?"),
        (["arch.H_cycles=0"], 3, "arch.H_cycles: expected a whole number"),
        (["another"], 2, "one run at a time"),
        (["runs/lr=1"], 2, "one run at a time"),
        ([f"dqn.bugdet={'0' * 300}"], 3, "did you mean dqn.budget?"),
    ],
)
def test_overrides_that_cannot_be(words: list[str], code: int, said: str, trained_run: Path, tmp_path: Path) -> None:
    for command in (["eval"], ["export", "--out", tmp_path / "folder"]):
        done = tiny.invoke(*command, trained_run, *words)
        assert (done.returncode, done.stdout) == (code, "")
        assert said in done.stderr
    assert not (tmp_path / "folder").exists()


def test_an_exported_folder_computes_in_float32(trained_run: Path, tmp_path: Path) -> None:
    done = tiny.invoke("export", trained_run, "training.precision=bfloat16", "--out", tmp_path / "folder")
    assert (done.returncode, done.stdout) == (3, "")
    assert "always computes in float32" in done.stderr
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("q_continue", [False, True])
def test_a_threshold_that_the_run_does_not_halt_by_is_said(q_continue: bool, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"arch: {{enable_q_continue: {q_continue}}}\ndqn: {{enabled: false}}\n")
    notes = overridden(tmp_path, ["arch.halt_threshold=1"], OF_AN_EVALUATION)[1]
    assert notes[0] == "arch.halt_threshold: 3.0 -> 1.0"
    assert [note for note in notes if "changes nothing" in note] == notes[1:]
    assert len(notes) == 1 + q_continue


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": {"num_capsules": 10**12}}, "shape: num_capsules"),
        ({"shape": {"num_capsules": 10**9}}, "embedding.position is"),  # 64 GB: no memory is asked for
        ({"shape": {"dim": "3"}}, "shape: dim is '3'"),
        ({"shape": {"total_price": None}}, "shape: total_price"),
        ({"data": {"eval": {"path": 5}}}, "path is 5"),
        ({"data": {"eval": {"split": None}}}, "split is None"),
        ({"data": {"eval": {"path": "gone.h5"}}}, "was trained with gone.h5: no such file"),
        ({"data": {"eval": None}}, "state.json does not describe its model"),
    ],
)
def test_a_state_that_trm_did_not_write(change: dict[str, Any], words: str, trained_run: Path, tmp_path: Path) -> None:
    """Its hash is right, and still it is refused with the file and what is wrong."""
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    path = max((run / "checkpoints").glob("step_*")) / "state.json"
    path.write_text(json.dumps(merged(json.loads(path.read_text()), change)))
    tiny.vouch_for(path.parent)
    done = tiny.invoke("eval", run)
    assert done.returncode == 4, done.stderr
    assert words in done.stderr
    assert str(run) in done.stderr


def test_a_sweep_of_prices_has_an_area(trained_run: Path) -> None:
    done = tiny.invoke("eval", trained_run, "--policy", "learned,never", "--price", "0.001,0.01,0.1", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    scores = {(s["policy"], s["setting"]): s for s in record["scores"]}
    points = sorted((s["opened"], s["accuracy"]) for s in record["scores"])
    assert points[0] == (0.0, scores["never", None]["accuracy"])
    assert min(a for _, a in points) <= record["areas"]["learned"] <= max(a for _, a in points)
    assert "areas" not in json.loads(tiny.invoke("eval", trained_run, "--policy", "never", "--json").stdout)


def test_another_selector_can_be_asked_for(trained_run: Path, tmp_path: Path) -> None:
    records = {}
    for selector in ("cmi", "variance"):
        done = tiny.invoke("eval", trained_run, "--policy", "threshold,never", "--selector", selector, "--json")
        assert done.returncode == 0, done.stderr
        records[selector] = json.loads(done.stdout)
        assert records[selector]["selector"] == selector
        assert records[selector]["peeks"] == (selector == "variance")
    assert records["cmi"]["scores"][1] == records["variance"]["scores"][1], "never opens nothing"
    shown = tiny.invoke("eval", trained_run, "--policy", "threshold", "--selector", "variance")
    assert "peeks at side information" in shown.stdout
    assert tiny.invoke("eval", trained_run, "--selector", "best").returncode == 2


def test_attention_cannot_select_where_there_is_none(trained_run: Path, capsule_file: Path, tmp_path: Path) -> None:
    overrides = tiny.as_overrides(
        data={"path": capsule_file}, arch={"mixer": "mlp"}, training={"run_dir": tmp_path / "run", "total_steps": 3}
    )
    assert tiny.invoke("train", *overrides).returncode == 0
    done = tiny.invoke("eval", tmp_path / "run", "--selector", "attention")
    assert done.returncode == 2
    assert "arch.mixer=mlp" in done.stderr


def test_a_plot_of_puzzles_is_of_whole_ones_against_steps(sudoku_run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing is spent there; and no policy stands twice in the legend."""
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    done = tiny.invoke("eval", sudoku_run, "--plot", tmp_path / "a.png", "--json")
    assert done.returncode == 0, done.stderr
    (axes,) = drawn[0].axes
    assert axes.get_xlabel() == "reasoning steps per sample"
    found = {text.get_text() for text in axes.get_legend().get_texts()}
    scores = {score["policy"]: score for score in json.loads(done.stdout)["scores"]}
    assert found == {*scores, "threshold"}
    points = {tuple(line.get_xydata()[0]) for line in axes.get_lines() if len(line.get_xydata()) == 1}
    assert {(s["steps"], 100 * s["exact_accuracy"]) for s in scores.values()} <= points
