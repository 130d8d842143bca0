"""Episodes step by step against a plain loop over rows: timing of rewards, resets, exploration, prices, openings."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trm_core.config.schema import Config
from trm_core.dqn.actions import Action
from trm_core.dqn.curiosity import Curiosity
from trm_core.dqn.replay import ReplayBuffer
from trm_core.dqn.rewards import RewardScale
from trm_core.losses import AnswerQuality, StepResult
from trm_core.model.carry import Carry, tensors_of
from trm_core.model.q_head import NUM_SCALARS
from trm_core.model.trm import StepOutput
from trm_core.training.episodes import Episodes
from trm_core.training.measure import every_step
from trm_core.training.upkeep import Upkeep

ROWS, HIDDEN = 6, 16
WIDTH = HIDDEN + NUM_SCALARS
PRICES = torch.tensor([1.0, 2.0, 0.5, 1.5])


def make_episodes(config: Config, capacity: int = 500, dqn: bool = True) -> Episodes:
    model = tiny.make_model(config)
    sized = config.dqn.model_copy(update={"buffer_capacity": capacity})
    replay = ReplayBuffer(sized, WIDTH, 3, torch.device("cpu")) if dqn else None
    return Episodes(model, config, PRICES, replay)


def scripted(step: int, seed: int = 0) -> StepResult:
    """A forward's results made up from the step's number: Q-values, utilities and states without a pattern."""
    generator = torch.Generator().manual_seed(1000 * seed + step)

    def uniform(*sizes: int) -> Tensor:
        return torch.rand(*sizes, generator=generator)

    z = uniform(ROWS, tiny.K, HIDDEN)
    output = StepOutput(
        z_H=z,
        z_L=z + 1,
        x=z + 2,
        logits=uniform(ROWS, 1, 3),
        halt_logit=uniform(ROWS) - 0.5,
        q_state=uniform(ROWS, WIDTH),
        q_values=uniform(ROWS, 3),
        q_memory=torch.zeros(ROWS, 0),
        cycles=torch.ones(ROWS, dtype=torch.int64),
    )
    accuracy = (uniform(ROWS) < 0.5).float()
    every = torch.ones(ROWS, dtype=torch.bool)
    quality = AnswerQuality(uniform(ROWS), uniform(ROWS), accuracy, accuracy.bool(), accuracy, every)
    return StepResult(torch.zeros(()), {}, output, quality, None)


@dataclass
class Seen:
    """What a row went through at one step."""

    state: list[float]
    utility: float
    accuracy: float
    action: int
    cost: float
    price: float
    episode: int


@given(
    seed=st.integers(0, 1000),
    signal=st.sampled_from(["probability", "accuracy"]),
    epsilon=st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(max_examples=12, deadline=None)
def test_rewards_are_settled_one_step_later(seed: int, signal: str, epsilon: float) -> None:
    config = tiny.make_config(
        arch={"max_steps": 4},
        training={"seed": seed},
        dqn={
            "reward_signal": signal,
            "reward_step_penalty": 0.03,
            "reward_min_rise": 0.2,
            "expand_count": 2,
            "buffer_dtype": "float32",  # states are looked up by their values
            "epsilon_start": epsilon,
            "epsilon_end": epsilon,
        },
    )
    episodes = make_episodes(config)
    dqn = config.dqn
    carry = episodes.initial_carry(tiny.make_batch(ROWS))
    history: list[list[Seen]] = [[] for _ in range(ROWS)]
    current = [-1] * ROWS
    drawn = 0
    for step in range(15):
        halted = carry.halted.clone()
        fresh = int(halted.sum())
        carry = episodes.begin(carry, tiny.make_batch(fresh, seed=step), step)
        drawn += fresh
        for row in range(ROWS):
            if halted[row]:
                current[row] = current[row] + 1
        result = scripted(step, seed)
        before = carry
        carry, decision = episodes.decide(carry, result, step)
        utility = result.quality.probability if signal == "probability" else result.quality.accuracy
        for row in range(ROWS):
            opened = carry.capsules.expanded[row] & ~before.capsules.expanded[row]
            cost = float((PRICES * opened).sum())
            assert torch.equal(opened, decision.opened[row])
            assert bool(opened.any()) == (int(decision.action[row]) == Action.EXPAND)
            assert int(before.steps[row]) <= 4
            if int(before.steps[row]) == 4:
                assert int(decision.action[row]) == Action.HALT
            history[row].append(
                Seen(
                    result.output.q_state[row].tolist(), float(utility[row]), float(result.quality.accuracy[row]),
                    int(decision.action[row]), cost, float(before.price[row]), current[row],
                )
            )  # fmt: skip

    expected: dict[tuple[float, ...], tuple[int, float, list[float], bool]] = {}
    for row in range(ROWS):
        for now, later in zip(history[row], [*history[row][1:], None], strict=True):
            if now.action == Action.HALT:
                expected[tuple(now.state)] = (1, -0.5 + 1.5 * now.accuracy, now.state, True)
                assert later is None or later.episode == now.episode + 1
            elif later is not None:
                assert later.episode == now.episode
                rise = later.utility - now.utility
                reward = rise - 0.03 - now.price * now.cost
                reward += dqn.reward_expansion_bonus * (now.action == Action.EXPAND and rise >= 0.2)
                expected[tuple(now.state)] = (now.action, reward, later.state, False)
    assert episodes.replay is not None
    index = episodes.replay.index
    got = episodes.replay.read(torch.from_numpy(index.complete.nonzero()[0]))
    assert len(got.action) == len(expected) == len(episodes.replay)
    for place in range(len(got.action)):
        action, reward, following, done = expected[tuple(got.state[place].tolist())]
        assert int(got.action[place]) == action
        assert float(got.reward[place]) == pytest.approx(reward, abs=1e-5)
        assert bool(got.done[place]) == done
        if not done:
            assert got.next_state[place].tolist() == following
            assert bool(got.next_valid[place, Action.HALT])
    rewards = torch.tensor([reward for _, reward, _, _ in expected.values()], dtype=torch.float64)
    assert episodes.scale.count == len(rewards)
    assert (episodes.scale.squares / len(rewards)) ** 0.5 == pytest.approx(float(rewards.std(correction=0)), rel=1e-4)
    assert drawn == sum(row[-1].episode + 1 for row in history)


def test_curiosity_rewards_the_action_that_led_to_a_state() -> None:
    config = tiny.make_config(arch={"max_steps": 4}, dqn={"enable_curiosity": True, "buffer_dtype": "float32"})
    episodes = make_episodes(config)
    read, replay = episodes.model.q_head.readable, episodes.replay
    assert replay is not None
    torch.manual_seed(0)
    episodes.curiosity = Curiosity(config.dqn, read(scripted(0).output.q_state).shape[1])
    twin, paid = copy.deepcopy(episodes.curiosity), []
    carry = episodes.initial_carry(tiny.make_batch(ROWS))
    for step in range(10):
        before = episodes.begin(carry, tiny.make_batch(int(carry.halted.sum()), seed=step), step)
        result = scripted(step)
        bonus = twin.bonus(read(result.output.q_state))
        twin.observe(read(result.output.q_state))
        carry, decision = episodes.decide(before, result, step)
        settled = before.pending.slot >= 0
        assert torch.allclose(replay.read(before.pending.slot[settled]).intrinsic, bonus[settled])
        assert not replay.read(carry.pending.slot[decision.ended]).intrinsic.any(), "nothing follows a HALT"
        paid.append(bonus[settled].double())
    assert episodes.intrinsic_scale.count == len(torch.cat(paid)) > 20
    spread = (episodes.intrinsic_scale.squares / episodes.intrinsic_scale.count) ** 0.5
    assert spread == pytest.approx(float(torch.cat(paid).std(correction=0)), rel=1e-4)


def test_rows_that_are_held_count_as_exploring_without_q_learning_too() -> None:
    config = tiny.make_config(arch={"max_steps": 3}, dqn={"enabled": False, "halt_exploration": 0.5})
    episodes = make_episodes(config, dqn=False)
    carry = episodes.initial_carry(tiny.make_batch(ROWS))
    kinds = set()
    for step in range(12):
        before = episodes.begin(carry, tiny.make_batch(int(carry.halted.sum()), seed=step), step)
        result = scripted(step)
        carry, decision = episodes.decide(before, result, step)
        wants_to_go_on = result.output.halt_logit <= 0
        held = (before.steps < before.min_steps) & (before.steps < 3)
        assert torch.equal(decision.exploring, held & ~wants_to_go_on)
        assert torch.equal(carry.halted, ~held & (~wants_to_go_on | (before.steps >= 3)))
        kinds |= set(zip(held.tolist(), wants_to_go_on.tolist(), strict=True))
    assert len(kinds) == 4


def running_carry(episodes: Episodes, steps: int = 3, seed: int = 5) -> Carry:
    carry = episodes.initial_carry(tiny.make_batch(ROWS))
    for step in range(steps):
        carry = episodes.begin(carry, tiny.make_batch(int(carry.halted.sum()), seed=step), step)
        carry, _ = episodes.decide(carry, scripted(step, seed), step)
    return carry


@given(halted=st.lists(st.booleans(), min_size=ROWS, max_size=ROWS).map(torch.tensor), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_begin_replaces_exactly_the_halted_rows(halted: Tensor, seed: int) -> None:
    episodes = make_episodes(tiny.make_config(training={"seed": seed}, arch={"max_steps": 8}))
    carry = replace(running_carry(episodes), halted=halted)
    batch = tiny.make_batch(int(halted.sum()), seed=77)
    after = episodes.begin(carry, batch, 9)
    old, new = tensors_of(carry), tensors_of(after)
    for name in old:
        if name in ("capsules.prices", "steps", "halted"):
            continue
        assert torch.equal(old[name][~halted], new[name][~halted]), name
    assert not after.halted.any()
    assert torch.equal(after.steps, torch.where(halted, 1, carry.steps + 1))
    if not halted.any():
        return
    first_H, first_L = episodes.model.first_latents(int(halted.sum()))
    assert torch.equal(after.z_H[halted], first_H)
    assert torch.equal(after.z_L[halted], first_L)
    assert torch.equal(after.capsules.sketches[halted], batch.sketches)
    assert batch.children is not None
    assert after.capsules.children is not None
    assert torch.equal(after.capsules.children[halted], batch.children)
    assert torch.equal(after.labels[halted, 0], batch.labels)
    assert bool((after.pending.slot[halted] == -1).all())
    assert not after.pending.opened[halted].any()
    assert not torch.equal(after.price[halted], carry.price[halted])


def test_what_was_open_at_the_start_is_no_expansion() -> None:
    dqn = {"random_open_fraction": 1.0, "epsilon_start": 1.0, "epsilon_end": 1.0, "expand_count": 2}
    episodes = make_episodes(tiny.make_config(arch={"max_steps": 4}, dqn=dqn))
    carry = episodes.initial_carry(tiny.make_batch(ROWS))
    at_start, bought = torch.zeros(ROWS, tiny.K, dtype=torch.bool), torch.zeros(ROWS, tiny.K, dtype=torch.bool)
    seen = torch.zeros(3)
    for step in range(20):
        new = carry.halted
        before = episodes.begin(carry, tiny.make_batch(int(new.sum()), seed=step), step)
        at_start[new], bought[new] = before.capsules.expanded[new], False
        result = scripted(step)
        carry, decision = episodes.decide(before, result, step)
        bought |= decision.opened
        measured = {
            name: (total, weight) for name, total, weight in every_step(before, carry, result, decision, Upkeep())
        }
        ended = carry.halted
        expected = (bought[ended].sum(), (bought[ended] * PRICES).sum(), at_start[ended].sum())
        for place, name in enumerate(("num_expansions", "expansion_cost", "num_open_at_start")):
            assert measured[f"train/{name}"] == (expected[place], ended.sum()), (step, name)
        seen += torch.stack(expected)
    assert bool((seen > 0).all())


def test_a_new_episode_forgets_what_the_q_head_remembered() -> None:
    episodes = make_episodes(tiny.make_config(arch={"q_head_type": "rnn"}), dqn=False)
    carry = episodes.initial_carry(tiny.make_batch(ROWS))
    halted = torch.tensor([True, False] * (ROWS // 2))
    carry = replace(carry, halted=halted, q_memory=torch.ones_like(carry.q_memory))
    after = episodes.begin(carry, tiny.make_batch(ROWS // 2), 3)
    assert not after.q_memory[halted].any()
    assert bool((after.q_memory[~halted] == 1).all())


def test_the_wrong_number_of_samples_is_a_bug() -> None:
    episodes = make_episodes(tiny.make_config())
    carry = episodes.initial_carry(tiny.make_batch(ROWS))
    with pytest.raises((RuntimeError, IndexError)):
        episodes.begin(carry, tiny.make_batch(ROWS - 1), 0)


def many(**dqn: Any) -> tuple[Episodes, Carry]:
    rows = 4000
    episodes = make_episodes(tiny.make_config(arch={"max_steps": 5}, dqn=dqn))
    batch = tiny.make_batch(rows)
    return episodes, episodes.begin(episodes.initial_carry(batch), batch, 0)


def test_prices_are_log_uniform_around_the_level() -> None:
    episodes, carry = many(price_spread=10.0, expansion_cost_per_child=0.01)
    assert episodes.model.price_level == pytest.approx(0.01 * tiny.M)
    exponents = torch.log10(carry.price / episodes.model.price_level)
    assert -1.0 <= float(exponents.min()) < -0.98
    assert 0.98 < float(exponents.max()) <= 1.0
    assert abs(float(exponents.mean())) < 0.05
    assert float(exponents.std()) == pytest.approx(2 / 12**0.5, rel=0.05)
    _, fixed = many(price_spread=1.0)
    assert bool((fixed.price == fixed.price[0]).all())


def test_prices_rise_to_their_level_at_first() -> None:
    batch, ratios = tiny.make_batch(ROWS), []
    for warmup in (0, 4):
        episodes = make_episodes(tiny.make_config(dqn={"price_warmup_steps": warmup}))
        ratios.append([episodes.begin(episodes.initial_carry(batch), batch, step).price for step in range(6)])
    for step, (level, rising) in enumerate(zip(*ratios, strict=True)):
        assert torch.allclose(rising, level * min((step + 1) / 4, 1.0)), step


def test_nothing_is_open_at_the_start_where_expansion_is_off() -> None:
    dqn = {"random_open_fraction": 1.0}
    batch = tiny.make_batch(ROWS)
    for expansion in (True, False):
        config = tiny.make_config(arch={"enable_capsule_expansion": expansion}, dqn=dqn)
        episodes = make_episodes(config)
        for step in range(5):
            carry = episodes.begin(episodes.initial_carry(batch), batch, step)
            if carry.capsules.expanded.any():
                break
        assert bool(carry.capsules.expanded.any()) == expansion


def test_a_share_of_the_episodes_starts_with_a_random_set_open() -> None:
    _, carry = many(random_open_fraction=0.5)
    share = carry.capsules.num_opened.float() / tiny.K
    # Half of the episodes, each at a rate of its own: 1/2 + 1/2 * 1/(k+1) open nothing, 1/2 * 1/(k+1) everything.
    assert float((share == 0).float().mean()) == pytest.approx(0.5 + 0.1, abs=0.03)
    assert float((share == 1).float().mean()) == pytest.approx(0.1, abs=0.03)
    assert not many(random_open_fraction=0.0)[1].capsules.expanded.any()
    budgeted = many(random_open_fraction=1.0, budget=2.0)[1].capsules
    assert budgeted.expanded.any()
    assert float(budgeted.spent.max()) == 2.0


def test_a_share_of_the_episodes_may_not_halt_at_once() -> None:
    _, carry = many(halt_exploration=0.4)
    counts = torch.bincount(carry.min_steps, minlength=6) / len(carry.min_steps)
    assert counts.tolist() == pytest.approx([0, 0.6, 0.1, 0.1, 0.1, 0.1], abs=0.03)


def test_a_row_may_be_held_anew_at_each_step() -> None:
    """Also at a step at which no row begins."""
    config = tiny.make_config(arch={"max_steps": 5}, dqn={"halt_exploration": 0.5, "halt_exploration_draw": "step"})
    episodes, batch = make_episodes(config), tiny.make_batch(ROWS)
    carry = episodes.begin(episodes.initial_carry(batch), batch, 0)
    some = replace(carry, halted=torch.arange(ROWS) < 2)
    later = [
        episodes.begin(carry, batch, 1).min_steps,
        episodes.begin(some, batch.select(torch.arange(2)), 1).min_steps,
    ]
    assert torch.equal(*later), "a draw is a function of step and row"
    assert not torch.equal(later[0], carry.min_steps)
    kept = Episodes(episodes.model, tiny.make_config(dqn={"halt_exploration": 0.5}), PRICES, None)
    assert torch.equal(kept.begin(carry, batch, 1).min_steps, carry.min_steps)


def test_held_rows_do_anything_but_halt_until_the_end() -> None:
    config = tiny.make_config(
        arch={"max_steps": 3},
        dqn={"halt_exploration": 1.0, "random_open_fraction": 0.0, "epsilon_start": 0.0, "epsilon_end": 0.0},
    )
    episodes = make_episodes(config)
    carry = episodes.initial_carry(tiny.make_batch(ROWS))
    carry = episodes.begin(carry, tiny.make_batch(ROWS), 0)
    assert bool((carry.min_steps >= 2).all())
    for step in range(3):
        result = scripted(step)
        wants_halt = torch.tensor([0.0, 9.0, 0.0]).expand(ROWS, 3)
        result = replace(result, output=replace(result.output, q_values=wants_halt))
        held = (carry.steps < carry.min_steps) & (carry.steps < 3)
        carry, decision = episodes.decide(carry, result, step)
        assert torch.equal(decision.action != Action.HALT, held)
        assert bool(decision.exploring[held].all())
        pending = replace(carry.pending, slot=carry.pending.slot.masked_fill(carry.halted, -1))
        carry = replace(carry, pending=pending, halted=torch.zeros(ROWS, dtype=torch.bool), steps=carry.steps + 1)


def test_exploration_depends_on_the_global_row_alone() -> None:
    config = tiny.make_config(dqn={"random_open_fraction": 1.0})
    whole = make_episodes(config)
    batch = tiny.make_batch(ROWS)
    all_rows = whole.begin(whole.initial_carry(batch), batch, 4)
    first = 4
    part = Episodes(whole.model, config, PRICES, None, first_row=first)
    last = tiny.make_batch(ROWS)
    last = type(last)(*(None if value is None else value[first:] for value in vars(last).values()))
    some = part.begin(part.initial_carry(last), last, 4)
    assert torch.equal(some.price, all_rows.price[first:])
    assert torch.equal(some.capsules.expanded, all_rows.capsules.expanded[first:])
    assert torch.equal(some.min_steps, all_rows.min_steps[first:])


def test_without_q_learning_the_halt_logit_decides() -> None:
    dqn = {"random_open_fraction": 0.0, "halt_exploration": 0.0}
    episodes = make_episodes(tiny.make_config(arch={"max_steps": 3}, dqn=dqn), dqn=False)
    carry = episodes.begin(episodes.initial_carry(tiny.make_batch(ROWS)), tiny.make_batch(ROWS), 0)
    result = scripted(1)
    following, decision = episodes.decide(carry, result, 0)
    assert torch.equal(decision.action == Action.HALT, result.output.halt_logit > 0)
    assert torch.equal(following.halted, result.output.halt_logit > 0)
    assert not decision.opened.any()
    at_the_end = replace(carry, steps=torch.full((ROWS,), 3))
    assert bool((episodes.decide(at_the_end, result, 0)[1].action == Action.HALT).all())
    assert vars(episodes.scale) == vars(RewardScale())
