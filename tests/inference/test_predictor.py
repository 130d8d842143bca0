"""The predictor on a trained run: the answers of evaluation, detail only of what is opened, rows that come and go."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from trm_core.config.schema import Config
from trm_core.data.batch import CapsuleBatch
from trm_core.data.store import open_capsules
from trm_core.data.stream import sequential_batches
from trm_core.errors import CheckpointError, DataError, UsageError
from trm_core.evaluation.rollout import Thinking, rollout
from trm_core.inference.engine import Engine
from trm_core.inference.predictor import Predictor
from trm_core.inference.samples import Answer, samples_of
from trm_core.inference.trained import Trained


@pytest.fixture(scope="module")
def predictor(trained_run: Path) -> Predictor:
    return Predictor.load(trained_run, device="cpu")


@pytest.fixture(scope="module")
def fields(capsule_file: Path) -> dict[str, Any]:
    with open_capsules(capsule_file) as file:
        return file.read("validation", slice(0, 40), ["sketches", "children", "checksums"])


def trained(config: Config, seed: int = 0, masked: bool = False, **shape: Any) -> Trained:
    """A model of random weights that opens and thinks a lot."""
    data = tiny.make_shape(**shape)
    model = tiny.make_model(config, data, seed).eval()
    names = [f"class {n}" for n in range(data.num_classes)]
    return Trained(model, config, np.ones(data.num_capsules, np.float32), names, masked, Path("nowhere"))


def wavering(seed: int = 3, **arch: Any) -> Trained:
    """One whose values are so near to each other that all actions occur."""
    config = tiny.make_config(
        arch={"enable_capsule_expansion": True, "max_steps": 6, **arch},
        dqn={"enabled": True, "expansion_selector": "cmi"},
    )
    return trained(config, seed)


def same(a: Answer, b: Answer) -> bool:
    return (a.prediction, a.steps, a.opened, a.spent) == (b.prediction, b.steps, b.opened, b.spent)


@pytest.mark.parametrize("policy", ["learned", "threshold", "act", "never", "all"])
def test_answers_are_those_of_evaluation(predictor: Predictor, capsule_file: Path, fields: Any, policy: str) -> None:
    answers = predictor.predict(policy=policy, **fields)
    trained = predictor.trained
    with open_capsules(capsule_file) as file:
        batches = sequential_batches(file, "validation", 512)
        outcome = rollout(
            trained.model, trained.config, batches, predictor.policy(policy), torch.as_tensor(trained.prices)
        )
    assert [a.prediction[0] for a in answers] == outcome.prediction[:, 0].tolist()
    assert [a.steps for a in answers] == outcome.steps.tolist()
    assert [len(a.opened) for a in answers] == outcome.opened.tolist()
    assert [a.spent for a in answers] == pytest.approx(outcome.spent.tolist())
    assert [a.confidence for a in answers] == pytest.approx(outcome.confidence.tolist(), abs=1e-6)
    for answer in answers:
        assert len(answer.decisions) == answer.steps
        assert answer.decisions[-1].action == "halt"
        assert answer.probabilities.sum() == pytest.approx(1.0, abs=1e-5)
        assert answer.label == (str(answer.prediction[0]),)


def test_only_opened_capsules_are_asked_for(fields: Any) -> None:
    predictor = Predictor(wavering())
    asked: list[tuple[int, int]] = []

    def children(row: int, capsule: int) -> np.ndarray:
        asked.append((row, capsule))
        return np.asarray(fields["children"][row, capsule])

    lazily = predictor.predict(**{**fields, "children": children})
    opened = [(row, capsule) for row, answer in enumerate(lazily) for capsule in answer.opened]
    assert sorted(asked) == sorted(opened)
    assert 0 < len(opened) < fields["sketches"].shape[0] * tiny.K
    assert all(same(a, b) for a, b in zip(lazily, predictor.predict(**fields), strict=True))


@pytest.mark.parametrize("policy", ["learned", "threshold"])
def test_detail_is_bought_once_for_all_beginnings(fields: Any, policy: str) -> None:
    """What the callable is asked for is what is paid, here and in evaluation."""
    model = replace(wavering(), prices=np.arange(1.0, tiny.K + 1, dtype=np.float32))
    asked: list[tuple[int, int]] = []

    def children(row: int, capsule: int) -> np.ndarray:
        asked.append((row, capsule))
        return np.asarray(fields["children"][row, capsule])

    answers = Predictor(model, restarts=4).predict(policy=policy, **{**fields, "children": children})
    totals = [answer.cost for answer in answers]
    assert sorted(asked) == [(row, capsule) for row, total in enumerate(totals) for capsule in total.opened]
    assert [total.spent for total in totals] == pytest.approx([sum(model.prices[list(t.opened)]) for t in totals])
    assert any(len(total.opened) > len(answer.opened) for total, answer in zip(totals, answers, strict=True))
    record = next(answer for answer in answers if answer.cost.opened).as_record()
    assert record["spent_in_all"] >= record["spent"]
    batch = CapsuleBatch(
        sketches=torch.from_numpy(fields["sketches"]),
        children=torch.from_numpy(fields["children"]),
        checksums=torch.from_numpy(fields["checksums"]),
        labels=torch.zeros(len(answers), dtype=torch.int64),
        parents=None, mask=None, modality=None, rows=torch.arange(len(answers)),
    )  # fmt: skip
    acting = Predictor(model).policy(policy)
    prices = torch.from_numpy(model.prices)
    outcome = rollout(model.model, model.config, [batch], acting, prices, thinking=Thinking(restarts=4))
    assert outcome.opened.tolist() == [len(total.opened) for total in totals]
    assert outcome.spent.tolist() == pytest.approx([total.spent for total in totals])
    assert outcome.steps.tolist() == [total.steps for total in totals]


def test_a_selector_that_peeks_looks_only_where_it_selects(fields: Any) -> None:
    model = wavering()
    config = model.config.model_copy(update={"dqn": model.dqn.model_copy(update={"expansion_selector": "variance"})})
    predictor = Predictor(replace(model, config=config))
    alone = {name: values for name, values in fields.items() if name == "sketches"}
    assert len(predictor.predict(policy="never", **alone)) == len(fields["sketches"])
    with pytest.raises(DataError, match="has no children"):
        predictor.predict(policy="threshold", **alone)


def test_unopened_detail_changes_nothing(fields: Any) -> None:
    predictor = Predictor(wavering())
    before = predictor.predict(**fields)
    other = np.full_like(fields["children"], 1e6)
    for row, answer in enumerate(before):
        for capsule in answer.opened:
            other[row, capsule] = fields["children"][row, capsule]
    for a, b in zip(before, predictor.predict(**{**fields, "children": other}), strict=True):
        assert same(a, b)
        assert np.array_equal(a.probabilities, b.probabilities)


@pytest.mark.parametrize("batch", [1, 3, 7, 64])
def test_who_thinks_beside_a_row_does_not_matter(fields: Any, batch: int) -> None:
    """Rows of a batch are at different steps: those that leave are replaced at once."""
    predictor = Predictor(wavering())
    expected = [predictor.predict(**{n: v[row : row + 1] for n, v in fields.items()})[0] for row in range(40)]
    assert len({answer.steps for answer in expected}) > 1
    found = predictor.predict(batch=batch, **fields)
    assert all(same(a, b) for a, b in zip(expected, found, strict=True))


def test_a_row_that_halts_makes_room(fields: Any) -> None:
    model = wavering()
    engine = Engine(model, model.policy())
    samples = list(samples_of(fields, model))
    engine.admit(range(4), samples[:4])
    through = engine.step()
    while not through:
        through = engine.step()
    assert len(engine) == 4 - len(through)
    engine.admit([9], samples[4:5])
    done = {one.key: one.answer for one in through}
    for _ in range(6):
        done |= {one.key: one.answer for one in engine.step()}
    assert sorted(done) == [0, 1, 2, 3, 9]
    assert len(engine) == 0
    assert engine.step() == []


def test_a_recurrent_head_remembers_its_own_row(fields: Any) -> None:
    predictor = Predictor(wavering(seed=5, q_head_type="rnn"))
    expected = [predictor.predict(**{n: v[row : row + 1] for n, v in fields.items()})[0] for row in range(20)]
    found = predictor.predict(batch=3, **{n: v[:20] for n, v in fields.items()})
    assert all(same(a, b) for a, b in zip(expected, found, strict=True))


def test_threads_may_share_it(fields: Any) -> None:
    predictor = Predictor(wavering())
    before = {name: value.clone() for name, value in predictor.trained.model.state_dict().items()}
    expected = predictor.predict(**fields)
    with ThreadPoolExecutor(4) as pool:
        for answers in pool.map(lambda batch: predictor.predict(batch=batch, **fields), [5, 8, 13, 21] * 2):
            assert all(same(a, b) for a, b in zip(expected, answers, strict=True))
    assert all(torch.equal(before[name], value) for name, value in predictor.trained.model.state_dict().items())


def test_a_stream_is_answered_in_order_and_not_read_ahead(fields: Any) -> None:
    predictor = Predictor(wavering())
    taken = 0

    def samples() -> Any:
        nonlocal taken
        for sample in samples_of(fields, predictor.trained):
            taken += 1
            yield sample

    expected = predictor.predict(**fields)
    for number, answer in enumerate(predictor.stream(samples(), batch=4)):
        assert same(answer, expected[number])
        assert taken <= number + 1 + 4 * 4


def test_a_row_without_children_is_an_error_of_its_own(fields: Any) -> None:
    predictor = Predictor(wavering())
    expected = predictor.predict(**fields)
    samples = [replace(sample, children=None) for sample in samples_of(fields, predictor.trained)]
    for one in predictor.stream_finished(iter(samples)):
        if expected[int(str(one.key))].opened:
            assert isinstance(one.error, DataError)
            assert "no children" in str(one.error)
        else:
            assert one.error is None
            assert one.answer is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sketches": None}, "no sketches"),
        ({"sketches": np.zeros((40, 4, 5))}, r"sketches have shape \[40, 4, 5\], the model takes \[40, 4, 3\]"),
        ({"sketches": np.full((40, 4, 3), np.nan)}, "sketches: row 0 holds NaN"),
        ({"sketches": np.full((40, 4, 3), "a")}, "expected numbers"),
        ({"children": np.zeros((40, 4, 1, 3))}, "children have shape"),
        ({"children": lambda row, capsule: np.zeros((3, 3))}, r"children of capsule \d have shape \[3, 3\]"),
        ({"children": lambda row, capsule: "no"}, "are not numbers"),
        ({"mask": np.zeros((40, 4), bool)}, "row 0 is all padding"),
        ({"mask": np.arange(160).reshape(40, 4) > 0}, "trained without"),
        ({"mask": np.ones((40, 4))}, "expected bool"),
    ],
)
def test_what_does_not_fit_is_named(fields: Any, change: dict[str, Any], message: str) -> None:
    given = {name: value for name, value in {**fields, **change}.items() if value is not None}
    with pytest.raises(DataError, match=message):
        Predictor(wavering()).predict(**given)


def test_padding_is_not_looked_at(fields: Any) -> None:
    config = tiny.make_config(arch={"enable_capsule_expansion": True}, dqn={"enabled": True})
    predictor = Predictor(trained(config, masked=True))
    mask = np.ones((40, tiny.K), bool)
    mask[:, -1] = False
    found = predictor.predict(mask=mask, **fields)
    other = {**fields, "sketches": fields["sketches"].copy()}
    other["sketches"][:, -1] = 1e3
    assert all(same(a, b) for a, b in zip(found, predictor.predict(mask=mask, **other), strict=True))
    assert all(tiny.K - 1 not in answer.opened for answer in found)


@pytest.mark.parametrize("settings", [{"policy": "nothing"}, {"price": -1.0}, {"confidence": 2.0}])
def test_settings_that_make_no_sense(fields: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Predictor(wavering()).predict(**fields, **settings)


def test_a_policy_that_was_not_learned_is_refused(fields: Any) -> None:
    plain = trained(tiny.make_config(dqn={"enabled": False}, arch={"enable_capsule_expansion": False}))
    with pytest.raises(UsageError, match=r"dqn\.enabled"):
        plain.policy("learned")
    assert plain.policy().name == "act"


def test_no_training_code_is_imported() -> None:
    code = "import sys, trm_core.inference.predictor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tiny.ROOT)
    loaded = {name for name in done.stdout.split() if name.startswith("trm_core")}
    training = {"trainer", "step", "episodes", "state", "saved_state", "features", "environment"}
    assert not loaded & {f"trm_core.training.{name}" for name in training}
    assert not {
        name for name in loaded if name.startswith(("trm_core.optim", "trm_core.losses", "trm_core.dqn.learner"))
    }


def test_a_run_whose_data_is_gone_says_what_to_do(trained_run: Path, tmp_path: Path, capsule_file: Path) -> None:
    import shutil

    run = shutil.copytree(trained_run, tmp_path / "run")
    for folder in (run / "checkpoints").iterdir():
        state = folder / "state.json"
        if state.is_file() and not folder.is_symlink():
            state.write_text(state.read_text().replace(str(capsule_file), "/nowhere/else.h5"))
            tiny.vouch_for(folder)
    with pytest.raises(CheckpointError, match=r"else\.h5") as caught:
        Predictor.load(run, device="cpu")
    assert "trm export" in str(caught.value.hint)


def test_random_openings_are_of_the_sample_and_not_of_its_company(fields: Any) -> None:
    model = wavering()
    config = model.config.model_copy(update={"dqn": model.dqn.model_copy(update={"expansion_selector": "random"})})
    predictor = Predictor(replace(model, config=config))
    whole = predictor.predict(policy="threshold", batch=64, **fields)
    assert len({answer.opened for answer in whole}) > 4
    for batch in (1, 3, 7):
        assert all(map(same, predictor.predict(policy="threshold", batch=batch, **fields), whole))
    rest = samples_of({name: values[25:] for name, values in fields.items()}, predictor.trained)
    assert all(map(same, predictor.stream(rest, predictor.policy("threshold"), first=25), whole[25:]))


def test_names_that_no_capsule_has_are_refused(fields: Any) -> None:
    predictor = Predictor(wavering())
    with pytest.raises(DataError, match="no array 'masks' of capsules"):
        predictor.predict(masks=np.ones((40, 4), bool), **fields)
    with pytest.raises(DataError, match="no sketches"):
        predictor.predict(**{**fields, "sketches": None})


def test_a_stream_says_what_it_takes(predictor: Predictor) -> None:
    with pytest.raises(UsageError, match="sample 0 of the stream is a str, not a Sample") as caught:
        next(predictor.stream(["a text"]))  # type: ignore[list-item]
    assert "predictor.encoded" in (caught.value.hint or "")
