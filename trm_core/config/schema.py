"""The whole configuration, declared once: names, types, ranges, defaults and what each key means.

Read by `trm_core.config.load` (which adds YAML, `extends`, overrides, aliases and error messages) and by everything
that takes settings. Sections hold plain values; nothing here imports torch. Keys follow the pipeline document that trm
implements; its other spellings are mapped in `trm_core.config.aliases`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Auto = Literal["auto"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
# No setting needs more, and the product of a few such numbers would overflow float32.
Positive = Annotated[float, Field(gt=0.0, le=1e9)]
NonNegative = Annotated[float, Field(ge=0.0, le=1e9)]
Signed = Annotated[float, Field(ge=-1e9, le=1e9)]
Count = Annotated[int, Field(ge=1)]
Cycles = Annotated[int, Field(ge=1, le=1000)]  # with more, a single step would not finish


class Section(BaseModel):
    """A group of keys. Unknown keys are errors; values are frozen once loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class HierarchyBias(Section):
    """What hierarchical attention adds to its logits, by how the attending capsule is related to the other."""

    parent_to_child: Signed = Field(1.0, description="A capsule looks at one of its children.")
    child_to_parent: Signed = Field(0.5, description="A capsule looks at its parent.")
    sibling: Signed = Field(0.5, description="A capsule looks at itself, or at one with the same parent.")
    unrelated: Signed = Field(0.0, description="Any other pair.")


class ArchConfig(Section):
    """The network: widths, cycles, heads."""

    hidden_size: Count = Field(512, description="Width of z_H and z_L.")
    # The bounds are not advice: beyond them, building the network would not finish, or its sizes would overflow.
    num_layers: Annotated[int, Field(ge=1, le=1000)] = Field(
        12, description="Transformer layers in the tied network f."
    )
    num_heads: Count = Field(8, description="Attention heads; must divide hidden_size.")
    ffn_expansion: Annotated[float, Field(gt=0.0, le=1000.0)] = Field(
        4.0, description="SwiGLU's hidden width as a multiple of hidden_size, before the 2/3 rule."
    )
    ffn_multiple: Annotated[int, Field(ge=1, le=65536)] = Field(
        32, description="SwiGLU's hidden width is rounded up to a multiple of this (the public TRM and HRM code: 256)."
    )
    mixer: Literal["attention", "mlp"] = Field(
        "attention", description="What mixes positions: attention, or a SwiGLU over them (a fixed number of positions)."
    )
    pos_encodings: Literal["learned", "rope", "none"] = Field(
        "learned", description="How positions are told apart: learned vectors, rotated queries and keys, or not at all."
    )
    rope_theta: Positive = Field(10000.0, description="Base of rope: its longest wavelength divided by 2 pi.")
    puzzle_emb_ndim: Annotated[int, Field(ge=0, le=2**20)] = Field(
        0,
        description="Puzzles: width of each puzzle's own embedding, which fills a prefix of positions; 0: no prefix.",
    )
    puzzle_emb_len: Annotated[int, Field(ge=0, le=4096)] = Field(
        16, description="Puzzles: positions of the prefix; 0: as many as puzzle_emb_ndim fills."
    )
    probabilities: Literal["softmax", "stablemax"] = Field(
        "softmax", description="How logits become probabilities, in the loss and everywhere else."
    )
    H_cycles: Cycles = Field(3, description="High-level cycles in one reasoning step.")
    L_cycles: Cycles = Field(2, description="Low-level updates nested in each high-level cycle.")
    grad_cycles: Count = Field(
        1, description="Number of last high-level cycles that carry gradient; the earlier ones run without."
    )
    grad_low_cycles: Count | None = Field(
        None,
        description="Number of last low-level updates in a high-level cycle that carry gradient; null: all. HRM's "
        "one-step gradient is 1.",
    )
    tied: bool = Field(
        True, description="One network for both levels (TRM); false gives separate H and L networks (HRM)."
    )
    max_steps: Count = Field(8, description="T: reasoning steps after which HALT is forced.")
    init_scale: Positive = Field(
        1.0,
        description="Factor on the initial weights, tokens and states. They are drawn from a normal of 1/sqrt(fan_in) "
        "that is cut at two standard deviations, which leaves 0.88 of it; 1.137 makes up for that, as the public TRM "
        "and HRM code do.",
    )
    residual_init_scale: Positive = Field(
        0.2, description="Initial size of the residual output weights, relative to the usual 1/sqrt(fan_in)."
    )
    dropout: Fraction = Field(0.0, description="Dropout on both residual branches of f, in training only.")
    readout: Literal["flat", "mean"] = Field(
        "flat",
        description="How one answer is read from all positions when labels are [N]: by a linear map of the flattened "
        "z_H, or of its mean.",
    )
    child_aggregation: Literal["project", "attention", "mean", "first"] = Field(
        "project", description="How an opened capsule's m children become one vector."
    )
    enable_concepts: bool = Field(
        False,
        description="Pull z_H towards the nearest entry of a learned concept vocabulary after every H-cycle (VQ).",
    )
    num_concepts: Count | Auto = Field(
        "auto",
        description="Concept vocabulary; auto takes it from the capsule file, 256 where its targets are classes.",
    )
    concept_dim: Count | Auto = Field("auto", description="Width of a concept's embedding; auto: hidden_size.")
    concept_mix: Fraction = Field(0.1, description="Share of the concept in z_H <- (1 - mix) z_H + mix concept.")
    concept_decay: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.99, description="Decay of the codebook's averages."
    )

    enable_mtp: bool = Field(
        False, description="Also predict the answers of the next positions (multi-token); needs an answer per capsule."
    )
    mtp_depth: Count = Field(2, description="How many following positions: depth d predicts position i + d.")

    q_head_type: Literal["linear", "mlp", "rnn", "attention"] = Field(
        "mlp", description="Kind of Q-head; linear is TRM's, on the first position."
    )
    q_head_num_actions: Literal[2, 3] = Field(3, description="2: CONTINUE, HALT. 3: also EXPAND.")
    q_head_hidden_dim: Count = Field(512, description="Hidden width of the Q-head.")
    q_head_tokens: Count = Field(4, description="Pooled tokens that the attention Q-head reads (and replay stores).")
    enable_q_continue: bool = Field(
        False,
        description="Learn HRM's continue logit by its bootstrapped target (costs a second forward); ACT then "
        "halts where the halt logit exceeds it. Only without dqn.enabled.",
    )
    halt_threshold: Signed = Field(
        3.0,
        description="Halt logit above which `act` halts in evaluation and prediction (3.0 is 95 %); training episodes "
        "halt above 0, as in TRM.",
    )

    enable_capsule_expansion: bool | Auto = Field("auto", description="Allow EXPAND; auto: when the file has children.")
    restart_on_expand: bool = Field(
        True,
        description="After EXPAND the row's z_H starts over and z_L is kept: a settled answer hardly reacts to detail "
        "that comes later.",
    )
    enable_adaptive_hcycles: bool = Field(
        False, description="In evaluation, leave the H loop when the halt logit is high."
    )
    hcycle_confidence_threshold: Signed = Field(
        2.0, description="Halt logit above which the H loop is left (2.0 is 88 %)."
    )
    enable_hierarchical_attention: bool = Field(False, description="Bias attention by the file's parent ids.")
    hierarchy_bias: HierarchyBias = Field(default_factory=HierarchyBias)

    @model_validator(mode="after")
    def _check(self) -> ArchConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} must divide hidden_size={self.hidden_size}")
        if self.grad_low_cycles is not None and self.grad_low_cycles > self.L_cycles:
            raise ValueError(f"grad_low_cycles={self.grad_low_cycles} cannot exceed L_cycles={self.L_cycles}")
        if self.pos_encodings == "rope" and self.hidden_size // self.num_heads % 2:
            raise ValueError("pos_encodings=rope needs an even hidden_size / num_heads")
        if self.puzzle_emb_len and self.puzzle_emb_ndim > self.puzzle_emb_len * self.hidden_size:
            raise ValueError(
                f"puzzle_emb_ndim={self.puzzle_emb_ndim} does not fit into puzzle_emb_len={self.puzzle_emb_len} "
                "positions"
            )
        if self.grad_cycles > self.H_cycles:
            raise ValueError(f"grad_cycles={self.grad_cycles} cannot exceed H_cycles={self.H_cycles}")
        return self


class BuildConfig(Section):
    """How raw data becomes a capsule file: `trm build-capsules`, and `data.source` in a training config."""

    kind: Literal["auto", "digits", "images", "text", "arc", "table", "arrays", "legacy"] = Field(
        "auto", description="Kind of the source; auto detects it and says why."
    )
    encoder: Literal[
        "auto",
        "pixels",
        "patch-pca",
        "tfidf-svd",
        "hashing-svd",
        "columns",
        "none",
        "sentence-transformers",
        "timm",
        "open_clip",
    ] = Field(
        "auto", description="Encoder of the detail; the last three are pretrained and need the extras text or vision."
    )
    encoder_model: str | None = Field(
        None, description="Pretrained encoders: a model's name, or the path of a local one."
    )
    encoder_batch_size: Count = Field(64, description="Pretrained encoders: phrases or pictures per forward.")
    encoder_device: str = Field("auto", description="Pretrained encoders: auto (a GPU if there is one), cpu, cuda, ...")
    encoders_of: str | None = Field(
        None,
        description="Capsule file whose encoders, layout, classes and prices are reused, to evaluate a model trained "
        "on it on new samples: nothing is fitted, and all rows become the split test.",
    )
    num_capsules: Count | Auto = Field("auto", description="k: capsules per sample.")
    num_children: Count | Auto = Field("auto", description="m: children per capsule.")
    dim: Count | Auto = Field("auto", description="D: width of sketches and children.")
    checksum_dim: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto", description="R: width of checksums; 0 writes none."
    )
    sketch: Literal["auto", "mean", "leading", "none"] = Field(
        "auto",
        description="What the coarse view keeps: the mean of the children; only its leading dimensions (sketch_dims); "
        "or nothing. auto: mean for images, grids and arrays, leading for text, none for tables.",
    )
    sketch_dims: Count | Auto = Field("auto", description="Dimensions that sketch=leading keeps; auto: a quarter.")
    dtype: Literal["float16", "float32"] = Field("float16", description="Stored precision of embeddings.")
    validation: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.1, description="Share of the samples for validation.")
    test: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="Share of the samples held out for the final test."
    )
    folds: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Cross-validation: number of folds; overrides test."
    )
    fold: Annotated[int, Field(ge=0)] = Field(0, description="Which of the folds is the test split.")
    shuffle: bool = Field(
        True, description="Shuffle before splitting; false keeps the source's order (contiguous blocks)."
    )
    seed: int = Field(0, description="Seed of splits, projections and fitted encoders.")
    num_concepts: Count = Field(256, description="k-means concepts used as targets where the source has no labels.")
    label: str | None = Field(
        None,
        description="Label column of a table or text file, or label array of an npz/h5 file; none (unless something "
        "has that name): no labels, the targets are concepts.",
    )
    text: str | None = Field(None, description="Text column of a csv/tsv/jsonl file.")
    groups: dict[str, list[str]] | None = Field(None, description="Tables: capsule name -> its columns.")
    prices: dict[str, Positive] | None = Field(
        None, description="Tables: capsule name -> what opening it costs (default 1)."
    )
    image_size: Count | None = Field(None, description="Images are first resized to a square of this side, in pixels.")
    augment_shift: Annotated[int, Field(ge=0)] = Field(
        0, description="Images: add copies of the training images shifted by up to this many pixels."
    )
    augment_warps: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Images: add this many copies of each training image, slightly rotated, scaled, sheared and "
        "shifted.",
    )
    augment_grids: Annotated[int, Field(ge=0)] = Field(
        0,
        description="ARC grids: add this many copies of each training pair, rotated or mirrored and recoloured.",
    )
    workers: Annotated[int, Field(ge=0)] = Field(0, description="Processes that read and encode; 0: in this process.")

    @model_validator(mode="after")
    def _check(self) -> BuildConfig:
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold={self.fold} must be below folds={self.folds}")
        if self.folds is None and self.fold:
            raise ValueError(f"fold={self.fold} needs folds: set it to the number of folds")
        if self.validation + (0.0 if self.folds else self.test) >= 1.0:
            raise ValueError("validation + test leave nothing to train on")
        return self


class PuzzleBuildConfig(Section):
    """How `trm build-puzzles` makes a puzzle folder."""

    seed: Annotated[int, Field(ge=0)] = Field(0, description="Seed of generated puzzles, splits and augmentations.")
    workers: Annotated[int, Field(ge=0)] = Field(
        0, description="Processes that generate and solve; 0: in this process."
    )
    augmentations: Annotated[int, Field(ge=0)] = Field(
        0, description="Augmented copies of each training puzzle (ARC: of each task, its test pairs too)."
    )
    subsample: Count | None = Field(None, description="Number of training puzzles to keep, drawn at random; null: all.")
    test: Fraction = Field(0.1, description="Share of the puzzles held out, where the source has no test file.")
    test_source: str | None = Field(None, description="Sudoku and mazes: a file of held-out puzzles.")
    count: Count | None = Field(None, description="Puzzles to generate, training and test together.")
    size: Count | None = Field(
        None, description="Side of generated grids: Sudoku 4, 6 or 9 (default), mazes 30 by default."
    )
    min_rating: int | None = Field(None, description="Sudoku csv: drop training puzzles with a lower rating.")
    clues: Count | None = Field(
        None, description="Generated Sudokus: fewest given cells; null: as few as leave one solution."
    )
    min_path: Count | None = Field(
        None, description="Generated mazes: fewest cells from S to G, both counted; null: a ninth of the grid."
    )
    test_subset: str | None = Field(
        None, description="ARC: the subset whose test pairs are held out; null: evaluation, or the last one."
    )


class WeightedPath(Section):
    """One of several capsule files that are mixed in training."""

    path: str = Field(description="The capsule file.")
    weight: Positive = Field(1.0, description="Its share of the samples, relative to the other files' weights.")


class DataConfig(Section):
    """Where samples come from."""

    path: str | list[str | WeightedPath] | None = Field(
        None, description="Capsule file or puzzle folder, or a (weighted) list of them."
    )
    eval_path: str | None = Field(
        None, description="Capsule file or puzzle folder to evaluate on, if not the training data's own split."
    )
    source: str | None = Field(
        None, description="Raw data to build first (cached); 'digits' are those of scikit-learn."
    )
    build: BuildConfig = Field(default_factory=BuildConfig, description="How data.source is built.")
    puzzles: PuzzleBuildConfig = Field(
        default_factory=PuzzleBuildConfig, description="How trm build-puzzles makes a folder of puzzles."
    )
    cache_dir: str | None = Field(None, description="Where built files are kept; default ~/.cache/trm.")
    eval_split: Literal["auto", "validation", "test", "train"] = Field(
        "auto", description="Split evaluated during and after training; auto: validation if there is one, else test."
    )
    num_workers: Annotated[int, Field(ge=0)] = Field(
        0, description="Loader processes; 0 reads in the training process."
    )
    draw: Literal["halted", "batch"] = Field(
        "halted",
        description="New samples per step: as many as rows halted, or a whole batch whose rest is discarded (as the "
        "public TRM and HRM code does).",
    )

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.path is not None and self.source is not None:
            raise ValueError("give data.path or data.source, not both")
        return self


class TrainingConfig(Section):
    """The loop: batch, schedule, optimiser, intervals."""

    run_dir: str | None = Field(None, description="Run directory; default runs/<name>-<time>.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="Seed of weights, data order, exploration and replay."
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1.")
    threads: Count | None = Field(None, description="CPU threads; default: torch's choice.")
    global_batch_size: Count = Field(768, description="Rows of a batch, over all processes.")
    accumulation_steps: Count = Field(
        1,
        description="Parts into which each process's rows are split, one computed after the other: less memory, same "
        "gradient.",
    )
    total_steps: Count = Field(100_000, description="Optimiser steps; one reasoning step of every row each.")
    stop_at_step: Count | None = Field(None, description="End early at this step with the state saved (exit code 75).")
    time_limit: Positive | None = Field(None, description="Hours after which to save and stop (exit code 75).")
    time_margin: NonNegative = Field(
        120.0,
        description="Seconds before the end of a SLURM job at which to save and stop (exit code 75); at most half of "
        "the time that is left.",
    )
    base_lr: NonNegative = Field(3e-4, description="Peak learning rate.")
    lr_warmup_steps: Annotated[int, Field(ge=0)] = Field(2000, description="Steps of the linear warm-up.")
    lr_min_ratio: Fraction = Field(
        0.1, description="Final learning rate as a share of base_lr, at the end of the cosine."
    )
    optimizer: Literal["adamatan2", "adamw", "muon"] = Field(
        "adamatan2", description="muon: torch.optim.Muon for the matrices of f, AdamW for the rest."
    )
    muon_lr: Positive = Field(0.02, description="Peak rate of Muon's matrices, where optimizer is muon.")
    betas: tuple[Decay, Decay] = Field((0.9, 0.95), description="Moment decay of AdamAtan2 and AdamW (TRM's).")
    weight_decay: NonNegative = Field(0.01, description="Decoupled weight decay.")
    grad_clip_norm: Positive = Field(1.0, description="Gradient norm above which the model's gradient is scaled down.")
    puzzle_emb_lr: NonNegative = Field(1e-2, description="Peak rate of the puzzle embeddings' sign-SGD.")
    puzzle_emb_weight_decay: NonNegative = Field(0.1, description="Decoupled weight decay of the puzzle embeddings.")
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(
        0.999, description="Decay of the averaged weights that are evaluated; null: none."
    )
    halt_gradient: Literal["trunk", "head"] = Field(
        "trunk", description="What the halt loss trains: the whole network, or the halt head alone."
    )
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="Label smoothing of lm_loss.")
    predictor_steps: Count | None = Field(
        None,
        description="After this step only the Q-head and the cmi head go on learning; null: everything to the end.",
    )
    init_from: str | None = Field(
        None,
        description="Start with these weights: a run, or a checkpoint file of the public TRM or HRM code.",
    )
    freeze: list[str] = Field(
        [],
        description="Patterns of parameter names that do not learn, e.g. ['embedding.*']; one that begins with ! "
        "exempts from what those before it froze, as in ['*', '!embedding.puzzles.*']. For fine-tuning.",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="Precision of the recursion's matrix products and attention; weights and states stay float32. "
        "float16 is for GPUs without bfloat16, and scales the loss.",
    )
    activation_checkpointing: bool = Field(
        False, description="Recompute the recursion in the backward pass: less memory, the same gradient, more time."
    )
    compile: bool = Field(False, description="Compile the recursion with torch.compile; needs a C++ compiler.")
    monitor_gradients: bool = Field(True, description="Log norms, zeros, NaN and Inf of the gradient per module group.")
    max_skipped_steps: Annotated[int, Field(ge=0)] = Field(
        3, description="Steps in a row with NaN or Inf that are skipped; one more rolls back to the last checkpoint."
    )
    max_rollbacks: Annotated[int, Field(ge=0)] = Field(
        3, description="Rollbacks, each halving the learning rates, after which the run ends with code 5."
    )
    log_interval: Count = Field(1, description="Write metrics every n steps.")
    watch: bool = Field(
        False, description="Run the cheap checks of `trm diagnose` during training, and warn once about what they find."
    )
    eval_interval: Count = Field(1000, description="Evaluate every n steps.")
    checkpoint_interval: Count = Field(5000, description="Save every n steps.")
    keep_checkpoints: Annotated[int, Field(ge=2)] = Field(
        2, description="Checkpoints kept (besides best); at least 2: the last may be in the middle of being saved."
    )

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        if self.lr_warmup_steps > self.total_steps:
            raise ValueError(
                f"lr_warmup_steps={self.lr_warmup_steps} exceeds total_steps={self.total_steps}: for a short trial set "
                f"training.lr_warmup_steps={self.total_steps // 10}"
            )
        return self


Selector = Literal["cmi", "checksum", "entropy", "attention", "static", "random", "variance"]


class DQNConfig(Section):
    """The decision process: replay, Q-learning, rewards, prices."""

    enabled: bool | Auto = Field("auto", description="Learn a policy; auto: when EXPAND is possible.")
    expansion_selector: Selector = Field(
        "cmi",
        description="Which unopened capsule EXPAND opens. checksum and variance peek at side information of unopened "
        "detail.",
    )
    expand_count: Count = Field(1, description="Capsules opened by one EXPAND.")
    budget: Positive | None = Field(None, description="Most a row may spend, in price units; null: no limit.")
    buffer_capacity: Count = Field(100_000, description="States kept for replay.")
    buffer_min_size: Count = Field(1000, description="Transitions before Q-learning starts.")
    batch_size: Count = Field(256, description="Transitions replayed per step.")
    buffer_dtype: Literal["float32", "float16"] = Field("float16", description="Precision of the stored states.")
    max_age: Count | None = Field(None, description="Training steps after which a transition is no longer sampled.")
    replay: Literal["uniform", "prioritized"] = Field("uniform", description="How transitions are drawn.")
    priority_alpha: Fraction = Field(0.6, description="Prioritized: chance proportional to |TD error| ** alpha.")
    priority_beta_start: Fraction = Field(
        0.4, description="Prioritized: exponent of the importance weights at the start; rises linearly to 1 at the end."
    )
    recent_fraction: Fraction = Field(
        0.0, description="Share of each replayed batch that is drawn from the youngest tenth of the buffer."
    )
    td_error_threshold: NonNegative = Field(
        0.0,
        description="Transitions whose last |TD error| (in scaled rewards) is below this are stored but not sampled.",
    )
    sequence_length: Count = Field(
        1, description="rnn Q-head: consecutive transitions replayed together, through which its gradient runs."
    )
    gamma: Fraction = Field(0.99, description="Discount.")
    target_update_freq: Count = Field(1000, description="Steps between copies to the target network.")
    target_tau: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None, description="Polyak rate; when set, the target follows every step instead."
    )
    loss: Literal["huber", "mse"] = Field("huber", description="TD loss.")
    lr: Positive | None = Field(None, description="Peak rate of the Q-head and the cmi head; null: base_lr.")
    grad_clip_norm: Positive = Field(1.0, description="Gradient norm limit of the Q-head and the cmi head.")
    epsilon_start: Fraction = Field(1.0, description="First exploration rate.")
    epsilon_end: Fraction = Field(0.01, description="Last exploration rate.")
    epsilon_decay: Count = Field(10_000, description="Steps of the linear decay of epsilon.")
    halt_exploration: Fraction = Field(
        0.3,
        description="Share of episodes that must think a random number of steps (2..T) before they may halt, with "
        "Q-learning and without.",
    )
    halt_exploration_draw: Literal["episode", "step"] = Field(
        "episode",
        description="When that is drawn: once for each episode, or anew at each step, as the public TRM and HRM code "
        "does, which holds rows back for fewer steps.",
    )
    random_open_fraction: Fraction = Field(
        0.5,
        description="Share of episodes that start with a random set of capsules open, each at its own rate, so that "
        "the predictor learns to be right in every state a policy can visit.",
    )
    price_warmup_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="The price level rises linearly from 0 over this many steps, so that EXPAND is tried first."
    )
    expansion_cost_per_child: NonNegative = Field(
        0.01, description="Price level: reward paid per child of an opened capsule, times the capsule's own price."
    )
    price_spread: Annotated[float, Field(ge=1.0, le=1e9)] = Field(
        10.0, description="Each episode's price level is drawn log-uniformly between level/spread and level*spread."
    )
    reward_signal: Literal["probability", "accuracy"] = Field(
        "probability", description="Utility u: mean probability of the right answer, or accuracy."
    )
    reward_step_penalty: NonNegative = Field(0.01, description="Cost of one more reasoning step.")
    reward_terminal_correct: Signed = Field(1.0, description="HALT with a right answer.")
    reward_terminal_incorrect: Signed = Field(-0.5, description="HALT with a wrong answer.")
    reward_expansion_bonus: NonNegative = Field(
        0.1, description="Paid for an EXPAND after which u rose by reward_min_rise."
    )
    reward_min_rise: NonNegative = Field(0.05, description="Rise of u that counts as helpful; 0: any rise.")
    enable_entropy_regularization: bool = Field(False, description="Add the entropy term (biases Q; epsilon explores).")
    entropy_regularization_weight: NonNegative = Field(0.0, description="Weight of the entropy term.")
    temperature_start: Positive = Field(1.0, description="First temperature of the entropy term's softmax(Q / tau).")
    temperature_end: Positive = Field(1.0, description="Last temperature.")
    temperature_decay: Count = Field(10_000, description="Steps of the linear change of temperature.")
    memory_reward_bonus: NonNegative = Field(
        0.05, description="Paid, where the memory bank is on, for a step after which u rose by reward_min_rise."
    )
    enable_curiosity: bool = Field(False, description="Pay for rarely seen states: hashed counts and RND.")
    curiosity_weight: NonNegative = Field(0.1, description="Size of the intrinsic reward, in extrinsic standard units.")
    curiosity_hash_bits: Annotated[int, Field(ge=1, le=20)] = Field(
        12, description="Random projections of a state whose signs are its cell in the count table."
    )
    curiosity_rnd_dim: Count = Field(64, description="Width of the random features that the RND predictor learns.")

    @model_validator(mode="after")
    def _check(self) -> DQNConfig:
        if self.buffer_min_size > self.buffer_capacity:
            raise ValueError(f"buffer_min_size={self.buffer_min_size} exceeds buffer_capacity={self.buffer_capacity}")
        if self.reward_terminal_incorrect > self.reward_terminal_correct:
            raise ValueError("reward_terminal_incorrect exceeds reward_terminal_correct: a wrong answer would pay more")
        return self


class MemoryConfig(Section):
    """The memory bank."""

    enabled: bool = Field(False, description="Read from and write to a bank of past states.")
    capacity: Count = Field(4096, description="Slots.")
    key_dim: Count | Auto = Field("auto", description="Width of keys, at most arch.hidden_size; auto: equal to it.")
    value_dim: Count | Auto = Field("auto", description="Width of values, at most arch.hidden_size; auto: equal to it.")
    num_heads: Count = Field(8, description="Retrieval heads; must divide key_dim and value_dim.")
    top_k: Count = Field(4, description="Slots read per position.")
    reward_threshold: Signed = Field(0.5, description="A row is written at HALT if its terminal reward reaches this.")
    dedup_threshold: Fraction = Field(
        0.98,
        description="Cosine of keys from which on a new entry replaces the nearest old one instead of taking a slot.",
    )

    @model_validator(mode="after")
    def _check(self) -> MemoryConfig:
        if self.top_k > self.capacity:
            raise ValueError(f"top_k={self.top_k} exceeds capacity={self.capacity}")
        for name in ("key_dim", "value_dim"):
            width = getattr(self, name)
            if width != "auto" and width % self.num_heads:
                raise ValueError(f"num_heads={self.num_heads} must divide {name}={width}")
        return self


class WeightRange(Section):
    """A loss weight that rises linearly from `low` to `high` over training."""

    low: NonNegative = Field(description="At the first step.")
    high: NonNegative = Field(description="At the last one.")


class LossWeights(Section):
    """Weight of each term of the loss. A term whose part is off is not computed, whatever its weight."""

    lm_loss: NonNegative = Field(1.0, description="Cross-entropy of the answer, after every reasoning step.")
    q_halt_loss: NonNegative = Field(0.5, description="The halt logit against 'the answer is right'.")
    q_continue_loss: NonNegative = Field(
        0.5, description="HRM's continue logit against its bootstrapped target; with arch.enable_q_continue."
    )
    reconstruction_loss: NonNegative = Field(0.5, description="Sketches and checksums predicted from z_H.")
    expansion_cost: NonNegative = Field(
        0.01, description="No effect: a metric. The reward carries the price (dqn.expansion_cost_per_child)."
    )
    vq_loss: NonNegative = Field(0.25, description="z_H against its nearest concept; with arch.enable_concepts.")
    dqn_loss: NonNegative | WeightRange = Field(
        WeightRange(low=0.005, high=0.5),
        description="TD loss of the replayed transitions; a range (also written 0.005-0.5) rises over training.",
    )
    cmi_loss: NonNegative = Field(
        1.0, description="The predicted fall of the loss after an opening, against the measured one."
    )
    mtp_loss: NonNegative = Field(0.5, description="Answers of the next positions; with arch.enable_mtp.")
    entropy_bonus: NonNegative = Field(
        1.0,
        description="Entropy of softmax(Q / temperature), times dqn.entropy_regularization_weight; with "
        "dqn.enable_entropy_regularization.",
    )
    rnd_loss: NonNegative = Field(1.0, description="Curiosity's predictor; with dqn.enable_curiosity.")

    @model_validator(mode="after")
    def _check(self) -> LossWeights:
        weight = self.dqn_loss
        if isinstance(weight, WeightRange) and weight.low > weight.high:
            raise ValueError(
                f"dqn_loss: low={weight.low:g} exceeds high={weight.high:g}, and the weight rises: write "
                f"{weight.high:g}-{weight.low:g}"
            )
        return self


class LoggingConfig(Section):
    """Where metrics go besides metrics.jsonl, which is always written."""

    tensorboard: bool = Field(False, description="Write TensorBoard event files into the run directory.")
    wandb: bool = Field(False, description="Log to Weights & Biases; offline unless you are logged in.")
    wandb_project: str = Field("trm", description="W&B project.")
    wandb_entity: str | None = Field(None, description="W&B entity.")


class Config(Section):
    """Everything `trm train` needs."""

    name: str = Field("run", description="Names the run directory.")
    arch: ArchConfig = Field(default_factory=ArchConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    dqn: DQNConfig = Field(default_factory=DQNConfig)
    memory: MemoryConfig = Field(default_factory=MemoryConfig)
    loss_weights: LossWeights = Field(default_factory=LossWeights)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
