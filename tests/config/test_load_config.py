"""Loading a config: every kind of error with its place, extends, overrides, and the way back to YAML."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_core.config import Config, InvalidConfig, describe, dump_config, load_config, load_config_dict
from trm_core.config.aliases import ELSEWHERE
from trm_core.config.dump import dump_value
from trm_core.config.schema_keys import leaves
from trm_core.config.yaml_loader import parse_value
from trm_core.errors import ConfigError, ExitCode


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def problems_of(path: Path | None, *overrides: str) -> list[str]:
    with pytest.raises(InvalidConfig) as caught:
        load_config(path, overrides)
    assert caught.value.exit_code == ExitCode.CONFIG
    return [str(problem) for problem in caught.value.problems]


def test_defaults() -> None:
    loaded = load_config(None)
    assert loaded.config == Config()
    assert set(loaded.origins.values()) == {"default"}
    assert set(loaded.origins) == set(leaves())


def test_origins_and_values(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "name: x\ntraining:\n  base_lr: 1e-4\n  total_steps: 1e5\n")
    loaded = load_config(path, ["dqn.gamma=0.95", "data.path=[a.h5,b.h5]"])
    assert loaded.config.training.base_lr == 1e-4
    assert loaded.config.training.total_steps == 100_000
    assert loaded.config.dqn.gamma == 0.95
    assert loaded.config.data.path == ["a.h5", "b.h5"]
    assert loaded.origins["training.base_lr"] == f"{path}:3"
    assert loaded.origins["dqn.gamma"] == "override"
    assert loaded.origins["dqn.loss"] == "default"
    assert ("training.base_lr", 1e-4, f"{path}:3") in describe(loaded)


def test_all_errors_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.yaml",
        """\
training:
  base_lrr: 1e-4
  total_steps: ten
  base_lr: .inf
  base_lr: 1
arch:
  num_concepts: x
  q_head_type: mpl
  num_layers: true
  tied: yes
  hidden_size: 10
loss_weights: {dqn_loss: {low: -1}}
data: {path: [a, {path: b, wieght: 1}], source: 3, build: 7}
trainng: {a: 1}
""",
    )
    assert problems_of(path, "dqn.gama=1", "dqn.gamma=2", "nonsense", "name=[") == [
        f"{path}:2: training.base_lrr: is not a known key; did you mean training.base_lr?",
        f"{path}:3: training.total_steps: expected a whole number >= 1; got 'ten'",
        f"{path}:4: training.base_lr: expected a number >= 0 and <= 1e9; got inf",
        f"{path}:5: training.base_lr: given twice, on line 4 and on line 5",
        f"{path}:7: arch.num_concepts: expected a whole number >= 1 or 'auto'; got 'x'",
        f"{path}:8: arch.q_head_type: expected 'linear', 'mlp', 'rnn' or 'attention'; got 'mpl'; did you mean 'mlp'?",
        f"{path}:9: arch.num_layers: expected a whole number >= 1 and <= 1000; got true",
        f"{path}:10: arch.tied: expected true or false; got 'yes'",
        f"{path}:11: arch: num_heads=8 must divide hidden_size=10",
        f"{path}:12: loss_weights.dqn_loss: expected a number >= 0 and <= 1e9 or a mapping {{low, high}}; "
        "got {'low': -1}",
        f"{path}:13: data.build: expected a mapping of keys such as `kind: ...`; got 7",
        f"{path}:13: data.path: expected text, a list of (text or a mapping {{path, weight}}) or null; "
        "got ['a', {'path': 'b', 'wieght': 1}]",
        f"{path}:13: data.source: expected text or null; got 3 (put it in quotes to make it text)",
        f"{path}:14: trainng: is not a known key; did you mean training?",
        "command line: dqn.gama: is not a known key; did you mean dqn.gamma?",
        "command line: expected KEY=VALUE such as training.base_lr=1e-4; got 'nonsense'",
        "command line: name: not valid YAML: expected the node content, but found '<stream end>' "
        "while parsing a flow node",
        "command line: dqn.gamma: expected a number >= 0 and <= 1; got 2",
    ]


@pytest.mark.parametrize("setting", ["num_layers=1001", "num_layers=1e18", "ffn_expansion=1e308"])
def test_a_network_that_could_not_be_built_is_refused(setting: str) -> None:
    """Building it would not come back, or end in an overflow."""
    with pytest.raises(InvalidConfig, match=r"expected a .*number .* and <= 1000"):
        load_config(None, [f"arch.{setting}"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("extends=foo.yaml", "extends: belongs at the top of a config file; did you mean --config foo.yaml?"),
        ("training={base_lr: 1, base_lr: 2}", "training.base_lr: given twice"),
        ("training.total_steps=1__0", "training.total_steps: expected a whole number >= 1; got '1__0'"),
        ("training.base_lr=1_.5", "training.base_lr: expected a number >= 0 and <= 1e9; got '1_.5'"),
        (".training.base_lr=3", ".training.base_lr: is not a known key; did you mean training.base_lr?"),
        (
            "loss_weights.dqn_loss=0.5-0.005",
            "loss_weights: dqn_loss: low=0.5 exceeds high=0.005, and the weight rises: write 0.005-0.5",
        ),
        ("training.base_lr=1e38", "training.base_lr: expected a number >= 0 and <= 1e9; got 1e+38"),
        ("dqn.lr=1e38", "dqn.lr: expected a number > 0 and <= 1e9 or null; got 1e+38"),
        (
            "data.build.prices.leaf=1e38",
            "data.build.prices.leaf: expected a mapping of names to numbers > 0 and <= 1e9 or null; "
            "got {'leaf': 1e+38}",
        ),
        (
            "arch.halt_threshold=-1e39",
            "arch.halt_threshold: expected a number >= -1e9 and <= 1e9; got -1e+39",
        ),
    ],
)
def test_what_is_wrong_with_an_override(override: str, said: str) -> None:
    (problem,) = problems_of(None, override)
    assert problem == f"command line: {said}"


def test_suggestions_know_last_parts_and_aliases() -> None:
    (bare,) = problems_of(None, "base_lr=1")
    assert bare.endswith("did you mean training.base_lr?")
    (alias,) = problems_of(None, "training.dqn_buffer_minsize=1")
    assert alias.endswith("did you mean training.dqn_buffer_min_size?")
    for theirs in ("lr", "training.epochs", "arch.halt_max_steps"):
        (elsewhere,) = problems_of(None, f"{theirs}=1")
        meant = ELSEWHERE[theirs.rpartition(".")[2]]
        assert elsewhere.endswith(f"{theirs}: is not a known key; did you mean {meant}?")
    known = set(leaves())
    assert {name for meant in ELSEWHERE.values() for name in re.findall(r"\w+\.\w+", meant)} <= known
    (far,) = problems_of(None, "zzzzqqq=1")
    assert far == "command line: zzzzqqq: is not a known key"


def test_cross_checks_name_every_place_and_skip_wrong_keys(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "training:\n  total_steps: 10\n")
    assert problems_of(path, "training.lr_warmup_steps=20") == [
        f"{path}:2, command line: training: lr_warmup_steps=20 exceeds total_steps=10: "
        "for a short trial set training.lr_warmup_steps=1"
    ]
    # The check would compare with the default of the wrong key: it is left out until that key is right.
    assert problems_of(None, "training.total_steps=x", "training.lr_warmup_steps=200000") == [
        "command line: training.total_steps: expected a whole number >= 1; got 'x'"
    ]


def test_a_section_without_keys_is_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "name: x\ntraining:\n#  base_lr: 1\n")
    assert load_config(path).config.training == Config().training


def test_dotted_keys_in_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "training.base_lr: 1\ntraining:\n  base_lr: 2\n")
    assert problems_of(path) == [
        f"{path}:3: training.base_lr: is the same key as training.base_lr ({path}:1: 1); got 2"
    ]


def test_extends_chain(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(
        tmp_path / "root.yaml",
        "training: {base_lr: 1, seed: 1, weight_decay: 0.5}\ndata:\n  path: [a, b]\n  build: {groups: {a: [x]}}\n",
    )
    write(tmp_path / "sub/middle.yaml", "extends: ../root.yaml\ntraining:\n  seed: 2\n  base_lr: 2\n")
    top = write(
        tmp_path / "top.yaml",
        "extends: sub/middle.yaml\ntraining: {base_lr: 3}\ndata: {path: [c], build: {groups: {b: [y]}}}\n",
    )
    loaded = load_config(top, ["training.weight_decay=0.25"])
    training = loaded.config.training
    assert (training.base_lr, training.seed, training.weight_decay) == (3, 2, 0.25)
    assert loaded.config.data.path == ["c"]
    assert loaded.config.data.build.groups == {"b": ["y"]}
    assert loaded.origins["training.seed"] == f"{tmp_path}/sub/middle.yaml:3"
    assert loaded.origins["training.base_lr"] == f"{top}:2"


def test_extends_mixes_spellings(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "training: {dqn_gamma: 0.9}\n")
    top = write(tmp_path / "top.yaml", "extends: base.yaml\ndqn: {gamma: 0.8}\n")
    assert load_config(top).config.dqn.gamma == 0.8


def test_extends_errors(tmp_path: Path) -> None:
    a = write(tmp_path / "a.yaml", "name: x\nextends: b.yaml\n")
    b = write(tmp_path / "b.yaml", "extends: ./a.yaml\n")
    assert problems_of(a) == [f"{b}:1: extends: ./a.yaml leads back to a file that extends this one"]
    itself = write(tmp_path / "self.yaml", "extends: self.yaml\n")
    assert "leads back" in problems_of(itself)[0]
    lost = write(tmp_path / "lost.yaml", "\nextends: nowhere.yaml\ntraining: {seed: x}\n")
    assert problems_of(lost) == [
        f"{lost}:2: extends: {tmp_path}/nowhere.yaml config file not found",
        f"{lost}:3: training.seed: expected a whole number >= 0 and < 4294967296; got 'x'",
    ]
    many = write(tmp_path / "many.yaml", "extends: [a.yaml]\n")
    assert problems_of(many) == [f"{many}:1: extends: expected the path of one YAML file; got ['a.yaml']"]


def test_an_error_in_a_base_names_the_base(tmp_path: Path) -> None:
    base = write(tmp_path / "base.yaml", "dqn:\n  gamma: 7\n")
    top = write(tmp_path / "top.yaml", "extends: base.yaml\n")
    assert problems_of(top) == [f"{base}:2: dqn.gamma: expected a number >= 0 and <= 1; got 7"]


def test_overrides() -> None:
    config = load_config(
        None,
        [
            "model.H_cycles=4",
            "training.dqn_gamma=0.5",
            "dqn.gamma=0.6",
            "data.build.prices.petal=2",
            "data.build.prices.leaf=3",
            "data.build={seed: 3, dim: 8}",
            "training.run_dir=",
            "name=a=b",
            "loss_weights.dqn_loss=0.005-0.5",
            "loss_weights.dqn_loss.high=0.7",
        ],
    ).config
    assert config.arch.H_cycles == 4
    assert config.dqn.gamma == 0.6  # the last one wins, whatever its spelling
    assert config.data.build.prices == {"petal": 2, "leaf": 3}
    assert (config.data.build.seed, config.data.build.dim) == (3, 8)
    assert config.training.run_dir is None
    assert config.name == "a=b"
    assert config.loss_weights.model_dump()["dqn_loss"] == {"low": 0.005, "high": 0.7}


def test_undecodable_command_line_word() -> None:
    assert problems_of(None, "name=caf\udce9", 'data.path=["\\ud800"]') == [
        "command line: name: holds the character U+DCE9, which YAML does not allow",
        "command line: data.path: holds characters that are not valid Unicode text",
    ]


def test_a_file_that_is_no_config_ends_soon(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "".join(f"some_key_{i}: 1\n" for i in range(5000)))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.message.endswith("... and 4950 more problems")
    assert len(caught.value.message.splitlines()) == 51


words = st.one_of(
    st.text(max_size=8), st.sampled_from(["1e-4", "no", "true", "~", "", "1_0", "0x1", "a: b", "*x", "x\ny"])
)
positive = st.floats(1e-300, 1e9)
counts = st.integers(1, 10**9)


def maybe(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=values)


configs = maybe(
    name=words,
    arch=maybe(
        dropout=st.floats(0, 1), max_steps=counts, tied=st.booleans(), num_concepts=st.one_of(counts, st.just("auto"))
    ),
    data=maybe(
        path=st.one_of(
            st.none(), words, st.lists(st.one_of(words, st.fixed_dictionaries({"path": words, "weight": positive})))
        ),
        build=maybe(
            groups=st.one_of(st.none(), st.dictionaries(words, st.lists(words, max_size=3), max_size=3)),
            prices=st.dictionaries(words, positive, max_size=3),
            label=st.one_of(st.none(), words),
        ),
    ),
    training=maybe(
        betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
        seed=st.integers(0, 2**32 - 1),
    ),
    dqn=maybe(enabled=st.sampled_from([True, False, "auto"]), reward_terminal_correct=st.floats(0, 1e9)),
    loss_weights=maybe(
        dqn_loss=st.one_of(positive, st.tuples(positive, positive).map(lambda two: {"low": min(two), "high": max(two)}))
    ),
)


@settings(deadline=None, max_examples=60)
@given(configs)
def test_dump_loads_back(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    config = Config(**values)
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path).config == config


@settings(deadline=None, max_examples=60)
@given(
    st.recursive(st.one_of(words, positive, st.none(), st.booleans()), lambda v: st.lists(v, max_size=3), max_leaves=5)
)
def test_dumped_value_is_an_override(value: object) -> None:
    text = dump_value(value)
    assert parse_value(text, "x") == value
    assert "\n" not in text


def test_load_config_dict() -> None:
    assert load_config_dict({"model": {"L_cycles": 6}}, ["dqn.gamma=0.5"]).config.arch.L_cycles == 6
    with pytest.raises(InvalidConfig, match=r"^checkpoint: training.sed: is not a known key"):
        load_config_dict({"training": {"sed": 1}}, name="checkpoint")


def test_the_package_is_cheap_to_import() -> None:
    code = (
        "import sys, trm_core.config; assert 'pydantic' not in sys.modules\n"
        "trm_core.config.load_config(None); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_of_a_build_beside_a_path_are_named(tmp_path: Path) -> None:
    given = ["data.path=a.h5", "data.build.folds=5", "data.build.fold=2", "data.puzzles.size=4", "data.build.test=0.1"]
    (note,) = load_config(None, given).notes
    assert note == (
        "data.build.folds, data.build.fold, data.puzzles.size: no effect, as data.path is given and nothing is built"
    )
    assert load_config(None, given[1:]).notes == []
    base, file = tmp_path / "base.yaml", tmp_path / "own.yaml"
    base.write_text("data:\n  source: digits\n  build: {folds: 5, prices: {a: 2}}\n")
    assert load_config(base, ["data.source=null", "data.path=a.h5"]).notes == [], "a worked example on another file"
    (note,) = load_config(base, ["data.source=null", "data.path=a.h5", "data.build.prices.a=3"]).notes
    assert note.startswith("data.build.prices: no effect")
    file.write_text("extends: base.yaml\ndata:\n  source: null\n  path: a.h5\n  build: {seed: 1}\n")
    (note,) = load_config(file).notes
    assert note.startswith("data.build.seed: no effect")
    file.write_text(dump_config(load_config(file).config))
    assert "data.build.validation" not in "".join(load_config(file).notes), "a file of all keys is not asking for all"


def test_no_shipped_config_speaks_of_a_build_without_effect() -> None:
    for path in sorted(Path(__file__).parents[2].glob("configs/*.yaml")):
        loaded = load_config(path, ["data.source=null", "data.path=a.h5"])
        assert not any("nothing is built" in note for note in loaded.notes), path


def test_a_fold_needs_folds() -> None:
    with pytest.raises(InvalidConfig) as caught:
        load_config(None, ["data.build.fold=2"])
    assert "fold=2 needs folds: set it to the number of folds" in caught.value.message
    assert load_config(None, ["data.build.fold=0"]).config.data.build.folds is None
