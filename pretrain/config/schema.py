"""The run configuration: one YAML file, one complete run.

Every section is a frozen pydantic model that refuses unknown keys. Derived numbers (data-parallel size,
gradient accumulation, padded vocabulary) are never stored here: they are functions in `derive`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pretrain.config.data import DataConfig
from pretrain.config.model import ModelConfig
from pretrain.config.section import NonNegativeInt, PositiveInt, Rate, Section


class BatchConfig(Section):
    """Sizes of a batch."""

    micro_batch_size: PositiveInt
    """Samples in one forward pass on one data-parallel rank."""
    global_batch_size: PositiveInt
    """Samples in one optimizer step, over all data-parallel ranks."""
    seq_length: PositiveInt
    """Tokens in one sample."""


class RampConfig(Section):
    """Batches that grow at the beginning of a run (Smith et al., 2018; Megatron's rampup_batch_size)."""

    start: PositiveInt
    """global_batch_size of the first steps."""
    increment: PositiveInt
    """What the batch grows by, each time after the same number of samples."""
    samples: PositiveInt
    """Samples of the run after which batches have their full size."""


class PretrainBatchConfig(BatchConfig):
    """Sizes of a pretraining batch."""

    ramp: RampConfig | None = None
    """Smaller batches at the beginning; null has full batches throughout."""


class OptimizerConfig(Section):
    """AdamW (Loshchilov & Hutter, 2019); no decay on biases and norms."""

    lr: Annotated[float, Field(gt=0.0)]
    """Peak learning rate."""
    min_lr: Annotated[float, Field(ge=0.0)] = 0.0
    """Learning rate at the end of the decay."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    beta1: Rate = 0.9
    beta2: Rate = 0.95
    eps: Annotated[float, Field(gt=0.0)] = 1e-8
    clip_grad: Annotated[float, Field(ge=0.0)] = 1.0
    """Largest global gradient norm; 0 switches clipping off."""


class ScheduleConfig(Section):
    """Learning rate over optimizer steps: linear warm-up, then a decay over the rest of `train_steps`."""

    kind: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """`wsd` is warm-up, stable, decay (Hu et al., 2024): constant, then linear over `wsd_decay_steps`."""
    lr_warmup_steps: NonNegativeInt = 0
    wsd_decay_steps: NonNegativeInt = 0


class ParallelConfig(Section):
    """How one model is laid over the ranks; the data-parallel size is what remains."""

    tensor_model_parallel_size: PositiveInt = 1
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """DeepSpeed ZeRO: 0 none, 1 optimizer states, 2 + gradients, 3 + parameters split over data ranks."""
    sequence_parallel: bool = False
    """Split activations between the tensor-parallel regions over the sequence (Korthikanti et al., 2022)."""


class CheckpointConfig(Section):
    """When checkpoints are written and how many stay."""

    save_interval: PositiveInt = 1000
    """Optimizer steps between checkpoints; one more is written at the end and on a stop signal."""
    keep_last: PositiveInt = 2
    """How many stay, counted from the newest."""
    keep_every: NonNegativeInt = 0
    """Checkpoints at multiples of so many steps stay for good; 0 for none."""
    async_save: bool = True
    """Training goes on while a copy of the state in host memory is written: each rank needs room for its
    share once more, 12 bytes for each parameter that it keeps the optimizer states of."""


class TrainingConfig(Section):
    """Length of the run, logging and evaluation."""

    train_steps: PositiveInt
    """Optimizer steps of the whole run."""
    log_interval: PositiveInt = 10
    eval_interval: NonNegativeInt = 0
    """Optimizer steps between evaluations on the validation split; 0 never evaluates."""
    eval_samples: PositiveInt = 256
    """Samples in one evaluation, always the same ones."""
    time_limit_seconds: NonNegativeInt = 0
    """Wall-clock time of one attempt, after which it saves and stops with exit code 75; 0 for no limit. Leave
    time for a step and a save before the scheduler's own limit."""
    profile_steps: NonNegativeInt = 0
    """Optimizer steps to profile, from the third of an attempt on: a table by phase, a trace in run_dir."""
    hang_timeout_seconds: NonNegativeInt = 900
    """A rank that makes no progress for so long ends the job with exit code 76 and a report; 0 never. Longer
    than the longest step, batch read, save or evaluation step; below 1800, where collectives give up."""
    replica_check_interval: NonNegativeInt = 0
    """Optimizer steps between checks that ranks with the same parameters hold the same bits; 0 never."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again to save memory: core attention only, or each whole layer."""


class BadStepsConfig(Section):
    """Steps whose update is left out: loss or gradient not finite, or (where asked for) a loss spike."""

    spike_zscore: Annotated[float, Field(ge=0.0)] = 0.0
    """A loss this many robust standard deviations (median, MAD) above the median of the last ones is a spike;
    0 looks for none. 8 catches what PaLM (Chowdhery et al., 2022, section 5.1) skipped by hand."""
    spike_window: Annotated[int, Field(ge=4)] = 128
    """Good losses that the median is taken over."""
    max_in_a_row: PositiveInt = 5
    """After so many bad steps in a row the run goes back to its last good checkpoint, behind their data."""
    max_rollbacks: NonNegativeInt = 3
    """After so many returns in a run it ends with exit code 3 instead."""


class JobConfig(Section):
    """What every training job has, pretraining or finetuning."""

    run_dir: str
    """Where config, metrics, TensorBoard files, logs and checkpoints go."""
    seed: NonNegativeInt = 1234
    batch: BatchConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    parallel: ParallelConfig = ParallelConfig()
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Compute type; bf16 and fp16 keep fp32 master weights, and fp16 scales the loss dynamically."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    training: TrainingConfig
    bad_steps: BadStepsConfig = BadStepsConfig()
    deepspeed: dict[str, Any] = {}
    """Extra DeepSpeed keys, merged into the generated config; a key that contradicts it is refused."""


class RunConfig(JobConfig):
    """A complete pretraining run."""

    initial_weights: str | None = None
    """Run directory (its newest checkpoint) or checkpoint whose weights the run starts with, to go on with
    other data and a schedule of its own; null starts from random weights."""
    batch: PretrainBatchConfig
    model: Annotated[ModelConfig, Field(discriminator="kind")]
    data: DataConfig
