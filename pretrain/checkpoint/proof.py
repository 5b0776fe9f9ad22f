"""Proof that a checkpoint arrived whole in another layout: a fingerprint of every parameter.

A fingerprint is the sum of bits(x_i) * (2i + 1) over the elements of the whole fp32 parameter, modulo 2^32:
exact, sensitive to values and to their places, and additive, so that every rank sums up what it holds,
however the parameter is split. The moments lie in the same places as the weights, so weights alone tell
whether a layout was read correctly; the hashes of the files guard the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.checkpoint.fragments import Fragment, RankState
from pretrain.checkpoint.layout import ParameterLayout
from pretrain.checkpoint.snapshot import Place, own_fragments, place_of
from pretrain.parallel.zero import Engine

Words = npt.NDArray[np.uint32]
_MODULUS = 1 << 32
_BLOCK = 1 << 16
_WEIGHTS = 2 * np.arange(_BLOCK, dtype=np.uint32) + 1


def fingerprints(
    tensors: Mapping[str, Tensor],
    fragments: Iterable[Fragment],
    layouts: Mapping[str, ParameterLayout],
    place: Place,
) -> dict[str, int]:
    """What this rank's fragments add to the fingerprint of each parameter.

    Args:
        tensors: "master/FLAT" -> [n] fp32 on the host.
        fragments: what this rank answers for.
        layouts: of all parameters.
        place: of this rank.
    """
    sums: dict[str, int] = {}
    for fragment in fragments:
        layout = layouts[fragment.name]
        if layout.tp_dim is None and place.tp_rank:
            continue  # every tensor-parallel rank holds the whole parameter; the first one answers
        values = tensors[f"master/{fragment.flat}"].narrow(0, fragment.flat_start, fragment.numel)
        part = _part(values.numpy().view(np.uint32), fragment.start, layout, place)
        sums[fragment.name] = (sums.get(fragment.name, 0) + part) % _MODULUS
    return sums


def add_up(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The fingerprints of whole parameters from those of all ranks."""
    sums: dict[str, int] = {}
    for part in parts:
        for name, value in part.items():
            sums[name] = (sums.get(name, 0) + value) % _MODULUS
    return sums


def loaded_fingerprints(engine: Engine, layouts: Mapping[str, ParameterLayout]) -> dict[str, int]:
    """The fingerprints of what an engine holds now; called by all ranks together."""
    state = RankState(engine)
    tensors = {f"master/{index}": flat.detach().cpu() for index, flat in enumerate(state.flats)}
    mine = fingerprints(tensors, own_fragments(engine, state.fragments), layouts, place_of(engine))
    sums = torch.tensor([mine.get(name, 0) for name in layouts], dtype=torch.int64)
    sums = sums.to(engine.topology.device)
    dist.all_reduce(sums)
    return {name: value % _MODULUS for name, value in zip(layouts, sums.tolist(), strict=True)}


def _part(words: Words, start: int, layout: ParameterLayout, place: Place) -> int:
    """Sum over words that lie from `start` on in a rank's flattened slice of a parameter."""
    if layout.tp_dim is None or place.tp_size == 1:
        return _run(words, start)
    # The slice consists of runs that follow each other in the whole parameter, tp_size runs apart.
    chunk = layout.shape[layout.tp_dim] // (layout.tp_stride * place.tp_size)
    run = chunk * math.prod(layout.shape[layout.tp_dim + 1 :])
    head = min(len(words), -start % run)
    total = _run(words[:head], _whole_index(start, run, place)) if head else 0
    rows = (len(words) - head) // run
    if rows:
        first = _whole_index(start + head, run, place)
        body = words[head : head + rows * run].reshape(rows, run)
        total += _rows(body, first, run * place.tp_size)
    done = head + rows * run
    if done < len(words):
        total += _run(words[done:], _whole_index(start + done, run, place))
    return total % _MODULUS


def _whole_index(index: int, run: int, place: Place) -> int:
    """Index in the whole parameter of an element of the slice."""
    row, within = divmod(index, run)
    return (row * place.tp_size + place.tp_rank) * run + within


def _run(words: Words, first: int) -> int:
    """Sum over words that lie one after the other in the whole parameter."""
    total = 0
    for at in range(0, len(words), _BLOCK):
        block = words[at : at + _BLOCK]
        total += int(np.dot(block, _WEIGHTS[: len(block)]))
        total += 2 * (first + at) * int(block.sum(dtype=np.uint32))
    return total % _MODULUS


def _rows(body: Words, first: int, apart: int) -> int:
    """Sum over rows, each of which is a run, `apart` elements after the one before."""
    rows, length = body.shape
    if length > _BLOCK:
        return sum(_run(row, first + index * apart) for index, row in enumerate(body)) % _MODULUS
    columns, sums = body.sum(axis=0, dtype=np.uint32), body.sum(axis=1, dtype=np.uint32)
    starts = ((2 * (first + apart * np.arange(rows, dtype=np.uint64))) % _MODULUS).astype(np.uint32)
    return (int(np.dot(columns, _WEIGHTS[:length])) + int(np.dot(sums, starts))) % _MODULUS
