"""The `data` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pretrain.config.section import NonNegativeInt, PositiveInt, Probability, Section


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
