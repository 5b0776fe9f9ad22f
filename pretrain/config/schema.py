"""The run configuration: one YAML file, one complete run.

Every section is a frozen pydantic model that refuses unknown keys. Derived numbers (data-parallel size,
gradient accumulation, padded vocabulary) are never stored here: they are functions in `derive`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """Base of all sections: frozen, strict types, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class ModelSection(Section):
    """What GPT and BERT share."""

    vocab_size: PositiveInt
    """Pieces of the tokenizer; the embedding is padded to `derive.padded_vocab_size`."""
    num_layers: PositiveInt
    hidden_size: PositiveInt
    ffn_hidden_size: PositiveInt
    """Width inside the MLP, usually 4 * hidden_size."""
    num_attention_heads: PositiveInt
    max_position_embeddings: PositiveInt
    """Longest sequence, in tokens, that the learned positions can address."""
    hidden_dropout: Rate = 0.1
    attention_dropout: Rate = 0.1
    init_std: Annotated[float, Field(gt=0.0)] = 0.02
    """Standard deviation of the normal initialisation of weights."""
    layernorm_epsilon: Annotated[float, Field(gt=0.0)] = 1e-5


class GPTModelConfig(ModelSection):
    """GPT-2 (Radford et al., 2019): pre-norm decoder, learned positions, tied embeddings."""

    kind: Literal["gpt"]


class BertModelConfig(ModelSection):
    """BERT (Devlin et al., 2019): encoder with masked-LM and next-sentence heads."""

    kind: Literal["bert"]
    norm_position: Literal["post", "pre"] = "post"
    """`post` is the original BERT; `pre` is Megatron's, stabler when deep."""
    nsp_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """lambda in loss = MLM + lambda * NSP."""
    layernorm_epsilon: Annotated[float, Field(gt=0.0)] = 1e-12


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


class CorpusConfig(Section):
    """One corpus written by `headwater data prepare`."""

    name: str
    path: str
    """The corpus directory, which holds `train/manifest.json`, or its URL (s3://, https://, ...)."""
    shards: str | None = None
    """Where the shards are if not beside their manifest: a URL, or `pipe:` and a command that prints one;
    `{shard}` stands for the shard's path in the corpus, like train/train-00000.tar."""
    weight: Annotated[float, Field(gt=0.0)] = 1.0
    """Share of samples drawn from this corpus, relative to the other weights."""


class MaskingConfig(Section):
    """Masked language modelling (BERT only)."""

    mask_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Share of tokens predicted."""
    mask_token_share: Probability = 0.8
    """Share of the predicted tokens that become [MASK]."""
    random_token_share: Probability = 0.1
    """Share of the predicted tokens that become a random one; the rest stays as it is."""
    short_sequence_probability: Probability = 0.1
    """Share of samples that aim at a random shorter length."""
    whole_word: bool = True
    """Predict all tokens of a word or none; false draws single tokens."""


class RemoteConfig(Section):
    """Reading corpora that are not local files."""

    attempts: PositiveInt = 6
    """How often a read is tried before it is an error; the waits in between grow up to 20 s."""
    timeout_seconds: Annotated[float, Field(gt=0.0)] = 60.0
    """A read that brings no byte for so long has failed."""
    threads: PositiveInt = 8
    """Reads at once, for each corpus and rank."""
    memory_mb: PositiveInt = 1024
    """Blocks kept in memory for each corpus and rank where they are read by range requests."""


class LimitConfig(Section):
    """A small part of the data, for experiments; one of the two numbers."""

    tokens: PositiveInt | None = None
    """Train on the first `tokens` tokens of each corpus (for BERT: of whole blocks), again and again."""
    samples: PositiveInt | None = None
    """Train on the first `samples` samples of each corpus, again and again."""


class DataConfig(Section):
    """The token stream."""

    corpora: Annotated[list[CorpusConfig], Field(min_length=1)]
    tokenizer: str | None = None
    """A tokenizer.model, tokenizer.json or vocabulary.json; null takes the one in the first corpus."""
    packing: Literal["concat", "best_fit"] = "concat"
    """GPT: `concat` cuts the row of all documents into samples. `best_fit` cuts only documents longer than a
    sample and packs the rest whole, padded where nothing fits (Ding et al., 2024); it implies
    reset_attention_mask and reset_position_ids."""
    reset_attention_mask: bool = False
    """GPT: no token attends to another document than its own."""
    reset_position_ids: bool = False
    """GPT: positions begin at 0 in every document."""
    eod_mask_loss: bool = False
    """GPT: the first token of a document is not predicted from the end of the one before it."""
    sentence_pairs: Literal["nsp", "sop", "none"] = "nsp"
    """BERT: `nsp` is the next sentence against text of another document (Devlin et al., 2019), `sop` against
    the two in swapped order (Lan et al., 2020). `none` has one segment of a document and only predicts masked
    tokens; it needs no sentence boundaries."""
    masking: MaskingConfig = MaskingConfig()
    verify_blocks: bool = True
    """Check the stored hash of each block when it is first read."""
    on_bad_block: Literal["error", "skip"] = "error"
    """`skip` leaves the samples of a damaged block out of the loss, counts them and writes them down."""
    access: Literal["auto", "range", "cache"] = "auto"
    """How shards behind URLs are read: by range requests, or whole through a cache on disk. `auto` takes the
    cache only where range requests do not work. Local files are always read in place."""
    cache_dir: str | None = None
    """Directory of the shard cache, best on a disk of each node; null puts it in run_dir."""
    cache_gb: Annotated[float, Field(gt=0.0)] = 100.0
    """What the shards in the cache may take (GiB); all processes of a node share it."""
    remote: RemoteConfig = RemoteConfig()
    limit: LimitConfig | None = None
    """Use only a part of each corpus; null uses all of it."""
    prefetch_steps: NonNegativeInt = 2
    """Optimizer steps whose batches are made ahead in a thread; 0 makes each when it is asked for."""


class CheckpointConfig(Section):
    """When checkpoints are written and how many stay."""

    save_interval: PositiveInt = 1000
    """Optimizer steps between checkpoints; one more is written at the end and on a stop signal."""
    keep_last: PositiveInt = 2


class TrainingConfig(Section):
    """Length of the run, logging and evaluation."""

    train_steps: PositiveInt
    """Optimizer steps of the whole run."""
    log_interval: PositiveInt = 10
    eval_interval: NonNegativeInt = 0
    """Optimizer steps between evaluations on the validation split; 0 never evaluates."""
    eval_samples: PositiveInt = 256
    """Samples in one evaluation, always the same ones."""
    recompute: Literal["none", "full"] = "none"
    """`full` recomputes each layer's activations in the backward pass to save memory."""


class JobConfig(Section):
    """What every training job has, pretraining or finetuning."""

    run_dir: str
    """Where config, metrics, TensorBoard files, logs and checkpoints go."""
    seed: NonNegativeInt = 1234
    batch: BatchConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    parallel: ParallelConfig = ParallelConfig()
    precision: Literal["fp32", "bf16"] = "bf16"
    """Compute type; bf16 keeps fp32 master weights in the optimizer."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    training: TrainingConfig
    deepspeed: dict[str, Any] = {}
    """Extra DeepSpeed keys, merged into the generated config; a key that contradicts it is refused."""


class RunConfig(JobConfig):
    """A complete pretraining run."""

    batch: PretrainBatchConfig
    model: Annotated[GPTModelConfig | BertModelConfig, Field(discriminator="kind")]
    data: DataConfig
