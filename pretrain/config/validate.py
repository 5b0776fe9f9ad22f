"""Checks that span sections; each problem is one sentence that names the keys and what to do."""

from __future__ import annotations

from pretrain.config.deepspeed import contradictions
from pretrain.config.deepspeed_keys import key_problems
from pretrain.config.derive import data_parallel_size, padded_vocab_size
from pretrain.config.layouts import refusals
from pretrain.config.model import model_problems
from pretrain.config.ramp import batch_sizes
from pretrain.config.schema import JobConfig, PretrainBatchConfig, RunConfig


def problems_of(config: RunConfig, world_size: int | None = None) -> list[str]:
    """Every contradiction between sections; with `world_size` also those with the number of ranks."""
    data = _corpora_problems(config) + _objective_problems(config)
    return _model_problems(config) + data + job_problems(config, world_size)


def job_problems(config: JobConfig, world_size: int | None = None) -> list[str]:
    """The checks that do not look at the model or the data; finetuning shares them."""
    problems = _schedule_problems(config)
    problems += refusals(config.parallel.model_dump(), config.precision, config.deepspeed)
    problems += key_problems(config.deepspeed)
    problems += _sequence_problems(config)
    problems += _batch_problems(config, world_size)
    if world_size is not None and not problems:
        problems += contradictions(config, world_size) + _hpz_problems(config, world_size)
    return problems


def _hpz_problems(config: JobConfig, world_size: int) -> list[str]:
    size = (config.deepspeed.get("zero_optimization") or {}).get("zero_hpz_partition_size", 1)
    if size > 1 and data_parallel_size(config, world_size) % size:
        return [
            f"deepspeed.zero_optimization.zero_hpz_partition_size: {size} does not divide the data-parallel "
            f"size: {data_parallel_size(config, world_size)}; take the number of GPUs of a node"
        ]
    return []


def _sequence_problems(config: JobConfig) -> list[str]:
    tp, seq_length = config.parallel.tensor_model_parallel_size, config.batch.seq_length
    if config.parallel.sequence_parallel and seq_length % tp:
        return [
            f"parallel.sequence_parallel: batch.seq_length: {seq_length} is not a multiple of "
            f"parallel.tensor_model_parallel_size: {tp}"
        ]
    return []


def _model_problems(config: RunConfig) -> list[str]:
    model, tp = config.model, config.parallel.tensor_model_parallel_size
    problems = model_problems(model, tp)
    if padded_vocab_size(model) % tp:
        problems.append(
            f"parallel.tensor_model_parallel_size: {tp} does not divide the padded vocabulary: "
            f"{padded_vocab_size(model)}"
        )
    if config.batch.seq_length > model.max_position_embeddings:
        problems.append(
            f"batch.seq_length: {config.batch.seq_length} is longer than "
            f"model.max_position_embeddings: {model.max_position_embeddings}"
        )
    if model.kind == "bert" and config.batch.seq_length < 8:
        problems.append(
            f"batch.seq_length: {config.batch.seq_length} is too short for sentence pairs (8 at least)"
        )
    return problems


def _schedule_problems(config: JobConfig) -> list[str]:
    schedule, steps = config.schedule, config.training.train_steps
    problems = []
    if schedule.lr_warmup_steps > steps:
        problems.append(
            f"schedule.lr_warmup_steps: {schedule.lr_warmup_steps} exceeds training.train_steps: {steps}"
        )
    if schedule.kind == "wsd" and not 0 < schedule.wsd_decay_steps <= steps - schedule.lr_warmup_steps:
        problems.append(
            f"schedule.wsd_decay_steps: {schedule.wsd_decay_steps} must be between 1 and train_steps - "
            f"lr_warmup_steps = {steps - schedule.lr_warmup_steps}"
        )
    if config.optimizer.min_lr > config.optimizer.lr:
        problems.append(
            f"optimizer.min_lr: {config.optimizer.min_lr} exceeds optimizer.lr: {config.optimizer.lr}"
        )
    return problems


def _corpora_problems(config: RunConfig) -> list[str]:
    names = [corpus.name for corpus in config.data.corpora]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems = [f"data.corpora: the name {name!r} is used twice; give each corpus its own" for name in twice]
    limit = config.data.limit
    if limit and (limit.tokens is None) == (limit.samples is None):
        problems.append("data.limit: give either tokens or samples")
    length = config.batch.seq_length
    if limit and limit.tokens and limit.tokens < length and config.model.kind == "gpt":
        problems.append(f"data.limit.tokens ({limit.tokens}) is less than a sample of {length}; raise it")
    return problems


def _objective_problems(config: RunConfig) -> list[str]:
    data, problems = config.data, []
    total = data.masking.mask_token_share + data.masking.random_token_share
    if total > 1.0 + 1e-9:
        problems.append(
            f"data.masking: mask_token_share and random_token_share add up to {total:g}, more than all "
            "predicted tokens"
        )
    others = ("packing", "reset_attention_mask", "reset_position_ids", "eod_mask_loss")
    if config.model.kind == "bert" and not config.model.add_binary_head and data.sentence_pairs != "none":
        problems.append(
            f"data.sentence_pairs: {data.sentence_pairs} makes pairs that nothing looks at with "
            "model.add_binary_head: false; set data.sentence_pairs: none, or add_binary_head: true"
        )
    foreign, other = (("sentence_pairs",), "bert") if config.model.kind == "gpt" else (others, "gpt")
    for key in foreign:
        if getattr(data, key) != type(data).model_fields[key].default:
            problems.append(f"data.{key} is for model.kind: {other}; remove it")
    return problems


def _batch_problems(config: JobConfig, world_size: int | None) -> list[str]:
    batch, tp = config.batch, config.parallel.tensor_model_parallel_size
    if isinstance(batch, PretrainBatchConfig) and batch.ramp and (problems := _ramp_problems(batch)):
        return problems
    if world_size is not None and world_size % tp:
        return [
            f"parallel.tensor_model_parallel_size: {tp} does not divide the number of ranks: {world_size}"
        ]
    dp = 1 if world_size is None else data_parallel_size(config, world_size)
    pieces, product = "batch.micro_batch_size", str(batch.micro_batch_size)
    if world_size is not None:
        pieces += " x data-parallel size"
        product += f" x {dp} ({world_size} ranks / TP {tp})"
    sizes = batch_sizes(batch)
    wrong = [size for size in sizes if size % (batch.micro_batch_size * dp)]
    problems = []
    if batch.global_batch_size in wrong:
        problems.append(
            f"batch.global_batch_size: {batch.global_batch_size} is not a multiple of {pieces} = {product}"
        )
    ramp = [size for size in wrong if size != batch.global_batch_size]
    if ramp:
        problems.append(
            f"batch.ramp: {len(ramp)} of its {len(sizes)} batch sizes are not multiples of {pieces} = "
            f"{product}: {', '.join(map(str, ramp))}; where the training is past the ramp, remove batch.ramp"
        )
    return problems


def _ramp_problems(batch: PretrainBatchConfig) -> list[str]:
    ramp = batch.ramp
    assert ramp is not None
    growth = batch.global_batch_size - ramp.start
    if growth <= 0 or growth % ramp.increment:
        return [
            f"batch.ramp: from start: {ramp.start} in steps of increment: {ramp.increment} the batch does "
            f"not grow to batch.global_batch_size: {batch.global_batch_size}"
        ]
    return []
