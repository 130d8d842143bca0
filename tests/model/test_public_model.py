"""Checkpoints of the public TRM and HRM code: the same weights give the same answers, after every reasoning step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import public_formulas
import pytest
import tiny
import torch
import yaml
from public_formulas import Sizes
from torch import Tensor

from trm_core.config import load_config
from trm_core.errors import CheckpointError
from trm_core.model.capsule_state import CapsuleState
from trm_core.model.data_shape import DataShape
from trm_core.model.trm import TinyRecursiveModel
from trm_core.training.initial_weights import PUZZLES, load_initial
from trm_core.training.public_weights import read_public, settings_of_public

CONFIGS = Path(__file__).parent.parent.parent / "configs"
STEPS = 5
NETWORKS = {
    "TRM-Att": Sizes(),
    "TRM-MLP": Sizes(mlp=True, pos_encodings="none"),
    "learned positions": Sizes(pos_encodings="learned"),
    "HRM": Sizes(tied=False, prefix=2),
}
TOKENS = np.arange(4 * 9).reshape(4, 9) % 7
PUZZLES_OF_ROWS = np.arange(4) % 5


def saved(folder: Path, sizes: Sizes, prefix: str = "_orig_mod.model.inner.", **settings: Any) -> Path:
    """A checkpoint as the public code leaves it, with its settings beside it."""
    path = folder / "step_5"
    weights = public_formulas.weights(sizes)
    torch.save({prefix + name: torch.from_numpy(value).float() for name, value in weights.items()}, path)
    arch = {"H_cycles": 2, "L_cycles": 3, "num_heads": 4, "expansion": 2.0, "halt_max_steps": STEPS}
    arch |= {"puzzle_emb_len": sizes.prefix, "pos_encodings": sizes.pos_encodings, "no_ACT_continue": False}
    (folder / "all_config.yaml").write_text(yaml.safe_dump({"arch": arch | settings}))
    return path


def model_of(path: Path, sizes: Sizes, puzzles: int = 5, **changes: Any) -> TinyRecursiveModel:
    """The network that the checkpoint asks for, with its weights."""
    arch = settings_of_public(path, read_public(path)) | changes
    config = tiny.make_config(arch=arch, dqn={"enabled": False})
    shape = DataShape(9, 0, 0, 0, 7, 2, 9.0, vocab_size=7, num_puzzles=puzzles)
    model = TinyRecursiveModel(config, shape, with_cmi=False).eval()
    load_initial(model, path)
    return model


def answers(model: TinyRecursiveModel) -> list[tuple[Tensor, Tensor]]:
    """Logits, and halt and continue logits, after each step."""
    rows = len(TOKENS)
    puzzles = CapsuleState.closed(
        torch.from_numpy(TOKENS), None, None, None, torch.ones(9), puzzles=torch.from_numpy(PUZZLES_OF_ROWS)
    )
    z_H, z_L = model.first_latents(rows)
    found = []
    with torch.no_grad():
        for step in range(1, STEPS + 1):
            output = model(z_H, z_L, puzzles, torch.full((rows,), step), torch.ones(rows))
            z_H, z_L = output.z_H, output.z_L
            assert output.continue_logit is not None
            found.append((output.logits, torch.stack([output.halt_logit, output.continue_logit], 1)))
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_weights_give_the_same_logits_after_every_step(name: str, tmp_path: Path) -> None:
    sizes = NETWORKS[name]
    expected = public_formulas.steps(sizes, TOKENS, PUZZLES_OF_ROWS, STEPS)
    got = answers(model_of(saved(tmp_path, sizes), sizes))
    for (logits, halting), (expected_logits, expected_halting) in zip(got, expected, strict=True):
        torch.testing.assert_close(logits.double(), torch.from_numpy(expected_logits), rtol=0, atol=1e-4)
        torch.testing.assert_close(halting.double(), torch.from_numpy(expected_halting), rtol=0, atol=1e-4)
    assert not np.allclose(expected[0][0], expected[-1][0], atol=0.1), "steps differ, so that they are compared"


RECORDED = {  # logits of the first row's first position after the last step, as the formulas gave them once
    "TRM-Att": [1.1343255, 1.9907704, -0.7921164, -2.1269335, 0.4265011, 2.2002482, -0.0482831],
    "TRM-MLP": [1.2159740, 1.5496077, -0.9495998, -1.7128418, 0.6551660, 1.8254635, -0.3413727],
    "learned positions": [1.2763338, 0.4439851, -1.2000137, -0.6502649, 1.0882346, 0.8373300, -0.9442993],
    "HRM": [0.7240781, 3.6463044, -0.0972862, -3.6630276, -0.5323804, 3.5715126, 1.1463157],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_formulas_are_those_of_the_record(name: str) -> None:
    logits, _ = public_formulas.steps(NETWORKS[name], TOKENS, PUZZLES_OF_ROWS, STEPS)[-1]
    np.testing.assert_allclose(logits[0, 0], RECORDED[name], atol=1e-6)


@pytest.mark.parametrize("prefix", ["", "inner.", "model.inner.", "_orig_mod.model.inner."])
def test_what_wrappers_put_before_names_does_not_matter(prefix: str, tmp_path: Path) -> None:
    path = saved(tmp_path, Sizes(), prefix)
    model = model_of(path, Sizes())
    expected = public_formulas.weights(Sizes())["lm_head.weight"]
    np.testing.assert_allclose(model.answer.output.weight.detach().numpy(), expected, rtol=1e-6)


def test_puzzle_embeddings_of_another_number_begin_at_their_mean(tmp_path: Path) -> None:
    path = saved(tmp_path, Sizes())
    model = model_of(path, Sizes(), puzzles=8)
    mean = public_formulas.weights(Sizes())["puzzle_emb.weights"].mean(0)
    np.testing.assert_allclose(model.state_dict()[PUZZLES].numpy(), np.tile(mean, (8, 1)), atol=1e-6)


def test_without_settings_beside_it_the_weights_tell_what_they_can(tmp_path: Path) -> None:
    path = saved(tmp_path, Sizes(mlp=True, pos_encodings="none"))
    (tmp_path / "all_config.yaml").unlink()
    found = settings_of_public(path, read_public(path))
    assert (found["mixer"], found["pos_encodings"], found["tied"]) == ("mlp", "none", True)
    assert (found["hidden_size"], found["num_layers"], found["puzzle_emb_ndim"]) == (32, 2, 40)


def test_the_settings_that_the_public_code_writes_for_hrm(tmp_path: Path) -> None:
    """They name neither the prefix nor the rule of halting: both are what HRM has."""
    path = saved(tmp_path, NETWORKS["HRM"])
    arch = {"name": "recursive_reasoning.hrm@HierarchicalReasoningModel_ACTV1", "halt_exploration_prob": 0.1}
    arch |= {"halt_max_steps": 16, "H_cycles": 2, "L_cycles": 2, "H_layers": 2, "L_layers": 2, "hidden_size": 32}
    arch |= {"num_heads": 4, "expansion": 4, "puzzle_emb_ndim": 40, "pos_encodings": "rope", "mlp_t": False}
    arch["loss"] = {"name": "losses@ACTLossHead", "loss_type": "softmax_cross_entropy"}
    (tmp_path / "all_config.yaml").write_text(yaml.safe_dump({"arch": arch}))
    found = settings_of_public(path, read_public(path))
    assert not found["tied"]
    assert (found["puzzle_emb_len"], found["enable_q_continue"], found["grad_low_cycles"]) == (0, True, 1)
    assert (found["H_cycles"], found["max_steps"], found["probabilities"]) == (2, 16, "softmax")


class Payload:
    def __reduce__(self) -> Any:
        return (print, ("ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({}, "holds a dict"),
        ({"inner.lm_head.weight": torch.zeros(7, 32)}, "has no token embedding"),
        ({"inner.embed_tokens.embedding_weight": "text"}, "is a str, not a tensor"),
        ({"encoder.weight": torch.zeros(2)}, "encoder.weight is not one of the weights"),
        ({"inner.q_head.weight": torch.zeros(3, 32)}, "q_head.weight is not one of the weights"),
        (Payload(), "it was not loaded"),
    ],
)
def test_files_that_are_no_checkpoint(content: Any, message: str, tmp_path: Path, capsys: Any) -> None:
    torch.save(content, tmp_path / "step_1")
    with pytest.raises(CheckpointError, match=message):
        read_public(tmp_path / "step_1")
    assert "ran" not in capsys.readouterr().out


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, Sizes())
    with pytest.raises(
        CheckpointError, match=r"recursion.low.blocks.0.ffn.gate_up.weight is \[512, 32\], but \[64, 32\]"
    ):
        model_of(path, Sizes(), ffn_multiple=32, ffn_expansion=1.0)
    with pytest.raises(CheckpointError, match=r"has no recursion.low.blocks.2"):
        model_of(path, Sizes(), num_layers=3)


@pytest.mark.parametrize("name", ["sudoku_att", "sudoku_mlp", "sudoku_hrm", "maze_att", "arc_att"])
def test_the_papers_configs_begin_as_the_public_code_does(name: str) -> None:
    """Their normals have the standard deviation that they are meant to have, after they were cut at twice as much."""
    config = load_config(CONFIGS / f"{name}.yaml", ["arch.hidden_size=128", "arch.puzzle_emb_ndim=128"]).config
    torch.manual_seed(0)
    shape = DataShape(64, 0, 0, 0, 40, 2, 64.0, vocab_size=40, num_puzzles=5)
    model = TinyRecursiveModel(config, shape, with_cmi=False).requires_grad_(False)
    block = model.recursion.low.blocks[0]
    matrices = [block.ffn.gate_up.weight, block.ffn.down.weight, model.answer.output.weight]
    drawn = [(matrix, matrix.shape[1] ** -0.5) for matrix in matrices]
    drawn.append((model.get_parameter("embedding.tokens.weight"), 128**-0.5))
    for weights, std in drawn:
        assert float(weights.std()) == pytest.approx(std, rel=0.03)
        assert float(weights.abs().max()) == pytest.approx(2 * std / 0.8796, rel=0.01)
    states = torch.cat([model.first_z_H, model.first_z_L])
    assert float(states.std()) == pytest.approx(1.0, rel=0.15)
