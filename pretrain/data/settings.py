"""What a data stream needs to know; a run's configuration holds it, other programs write it themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pretrain.config.data import DataConfig
from pretrain.config.schema import PretrainBatchConfig, RunConfig
from pretrain.config.section import NonNegativeInt, PositiveInt, Section

CACHE_DIRECTORY = "data_cache"


class StreamConfig(Section):
    """The data part of a run."""

    kind: Literal["gpt", "bert"]
    """Next-token prediction, or masked sentence pairs."""
    seed: NonNegativeInt = 1234
    batch: PretrainBatchConfig
    data: DataConfig
    vocab_size: PositiveInt | None = None
    """What the tokenizer must have; null takes any."""
    eval_samples: PositiveInt = 256
    cache: str = CACHE_DIRECTORY
    """Directory for indexes that take a while to build (BERT)."""

    @classmethod
    def of(cls, config: RunConfig | StreamConfig) -> StreamConfig:
        """The data part of a run's configuration."""
        if isinstance(config, StreamConfig):
            return config
        return cls(
            kind=config.model.kind,
            seed=config.seed,
            batch=config.batch,
            data=config.data,
            vocab_size=config.model.vocab_size,
            eval_samples=config.training.eval_samples,
            cache=str(Path(config.run_dir) / CACHE_DIRECTORY),
        )

    def fixed(self) -> dict[str, Any]:
        """The keys of `data` that decide what samples are, by name; a training cannot go on with others.

        GPT's row of tokens is the same however a limit is written, so there its length is compared instead.
        """
        names = {"bert": ("limit", "masking", "sentence_pairs"), "gpt": ("packing",)}[self.kind]
        if self.data.packing == "best_fit":
            names = (*names, "limit")
        values = self.data.model_dump(mode="json")
        return {name: values[name] for name in names}
