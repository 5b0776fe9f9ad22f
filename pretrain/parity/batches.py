"""Made-up batches, a function of the step: the same global batch at every layout, targets dealt unevenly."""

from __future__ import annotations

import numpy as np

from pretrain.config import RunConfig

Arrays = dict[str, np.ndarray]
FIRST_TOKEN = 6
"""Lower ids stand for special tokens."""


def micro_batches(config: RunConfig, step: int, rank: int, size: int) -> list[Arrays]:
    """The micro-batches of data-parallel rank `rank` of `size` in optimizer step `step`."""
    batch = config.batch
    samples = [_sample(config, step, index) for index in range(batch.global_batch_size)]
    mine = samples[rank * len(samples) // size : (rank + 1) * len(samples) // size]
    width = batch.micro_batch_size
    return [_stacked(mine[i : i + width], batch.seq_length) for i in range(0, len(mine), width)]


def _sample(config: RunConfig, step: int, index: int) -> Arrays:
    """One sample; sample 0 has the most targets of a GPT and the fewest of a BERT."""
    rng = np.random.default_rng([11, step, index])
    length = config.batch.seq_length
    tokens = rng.integers(FIRST_TOKEN, config.model.vocab_size, (1, length + 1))
    if config.model.kind == "gpt":
        mask = np.ones((1, length), np.float32)
        mask[:, : index * length // (config.batch.global_batch_size + 2)] = 0.0
        return {"tokens": tokens[:, :-1], "labels": tokens[:, 1:], "loss_mask": mask}
    real = length - index
    positions = np.sort(rng.choice(real, size=1 + 2 * index, replace=False))
    return {
        "tokens": tokens[:, :-1],
        "token_types": (np.arange(length) > length // 2).astype(np.int64)[None],
        "padding_mask": (np.arange(length) < real)[None],
        "masked_positions": positions,
        "masked_labels": tokens[0, positions],
        "next_sentence_labels": rng.integers(0, 2, 1),
    }


def _stacked(samples: list[Arrays], seq_length: int) -> Arrays:
    stacked = {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}
    if "masked_positions" in stacked:
        shifted = [sample["masked_positions"] + i * seq_length for i, sample in enumerate(samples)]
        stacked["masked_positions"] = np.concatenate(shifted)
    return stacked
