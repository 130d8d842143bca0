"""Optimizers that do not import torch's compiler take the steps of those that do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from trm_core.optim.uncompiled import AdamW


def test_adamw_takes_the_steps_of_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.ParameterList([torch.ones(3, 2), torch.ones(4)]) for _ in range(2))
    optimizers = AdamW(ours, lr=0.1, weight_decay=0.3), torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.3)
    for _ in range(4):
        gradients = [torch.randn(3, 2), torch.randn(4)]
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            for parameter, gradient in zip(params, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
            optimizer.zero_grad()
            assert all(parameter.grad is None for parameter in params)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)
        assert not torch.equal(mine, torch.ones_like(mine))
    first, second = (optimizer.state_dict() for optimizer in optimizers)
    assert first["param_groups"] == second["param_groups"]
    torch.testing.assert_close(first["state"], second["state"], rtol=0, atol=0)
    optimizers[1].load_state_dict(first)
    optimizers[0].load_state_dict(second)


def test_hooks_around_steps_and_states_are_still_called() -> None:
    """What torch's marks are taken off must not take the hooks along."""
    called = []
    optimizer = AdamW([nn.Parameter(torch.ones(2))])
    optimizer.register_step_pre_hook(lambda *_: called.append("step"))
    optimizer.register_state_dict_pre_hook(lambda *_: called.append("save"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: called.append("load"))
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert called == ["step", "save", "load"]


def test_a_closure_learns_and_the_step_does_not() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = AdamW([parameter], lr=0.1)

    def closure() -> torch.Tensor:
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2
    assert parameter.is_leaf
    assert parameter.detach().max() < 1


@pytest.mark.parametrize("optimizers", [["muon"], pytest.param(["adamatan2", "adamw"], marks=pytest.mark.slow)])
def test_a_run_does_without_the_compiler(optimizers: list[str], tmp_path: Path, capsule_file: Path) -> None:
    """Training, saving, evaluating and going on: importing it takes as long as importing torch."""
    program = (
        "import sys; from trm_cli.main import app\n"
        "for arguments in sys.stdin.read().splitlines():\n"
        "    app(arguments.split('\\t'), standalone_mode=False)\n"
        "    print('torch._dynamo' in sys.modules)"
    )
    commands = []
    for optimizer in optimizers:
        run = tmp_path / optimizer
        overrides = tiny.as_overrides(
            data={"path": capsule_file},
            training={"run_dir": run, "total_steps": 4, "lr_warmup_steps": 1, "optimizer": optimizer},
        )
        commands += [["train", *overrides], ["train", "--resume", str(run), "training.total_steps=6"]]
    done = subprocess.run(
        [sys.executable, "-c", program],
        input="\n".join("\t".join(command) for command in commands),
        capture_output=True, text=True, check=False, cwd=tmp_path, env=tiny.environment(tmp_path),
    )  # fmt: skip
    found = [line for line in done.stdout.splitlines() if line in ("True", "False")]
    assert found == ["False"] * len(commands), done.stdout + done.stderr
    for optimizer in optimizers:
        assert len(tiny.metrics_without_clock(tmp_path / optimizer)) == 6
