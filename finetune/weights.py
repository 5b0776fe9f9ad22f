"""Our parameters <-> those of transformers' models: pure functions on dicts of tensors.

One table of links per architecture (`gpt_links`, `bert_links`) serves both directions. What differs:

- Query, key and value are one matrix in ours, ordered by query group (megatron-core's order, so that tensor
  parallelism cuts between groups): the queries of the group, its key, its value. GPT-2 orders it [q; k; v];
  BERT and Llama have three matrices.
- A gated MLP has one matrix [gate; up] in ours, two in Llama.
- GPT-2 stores linear weights transposed ([in, out], its "Conv1D").
- Our vocabulary rows are padded to a multiple of 128; theirs are not.
- Output projections tied to the word embeddings are not stored in ours; theirs may store them.

Legend: V vocabulary, H hidden_size, N heads, G query groups, D head size, F ffn_hidden_size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.config import ConfigError
from pretrain.config.derive import padded_vocab_size, query_groups
from pretrain.config.model import ModelSection

TensorDict = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Link:
    """One of our parameters and what it is called and looks like in transformers."""

    ours: str
    theirs: tuple[str, ...]
    to_hf: Callable[[Tensor], tuple[Tensor, ...]]
    from_hf: Callable[[tuple[Tensor, ...]], Tensor]


def to_hf(links: list[Link], parameters: Mapping[str, Tensor]) -> TensorDict:
    """Their state dict (without tied copies) from our whole parameters.

    Raises:
        ConfigError: If a parameter is missing, or there is one that no link knows.
    """
    _check_names(parameters, {link.ours for link in links}, "the checkpoint")
    return {
        name: _standalone(tensor)
        for link in links
        for name, tensor in zip(link.theirs, link.to_hf(parameters[link.ours]), strict=True)
    }


def from_hf(links: list[Link], state: Mapping[str, Tensor]) -> TensorDict:
    """Our whole parameters from their state dict; tied copies and unrelated heads in it are ignored.

    Raises:
        ConfigError: If a tensor is missing.
    """
    wanted = {name for link in links for name in link.theirs}
    _check_names({name: state[name] for name in state if name in wanted}, wanted, "the Hugging Face model")
    return {
        link.ours: link.from_hf(tuple(state[name] for name in link.theirs)).contiguous() for link in links
    }


def _standalone(tensor: Tensor) -> Tensor:
    """Contiguous, and not a part of a larger tensor, which would be written whole."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _check_names(given: Mapping[str, Tensor], wanted: set[str], source: str) -> None:
    missing, unknown = sorted(wanted - given.keys()), sorted(given.keys() - wanted)
    if missing:
        raise ConfigError(
            f"{source} has no {missing[0]} ({len(missing)} missing); is it another kind of model?"
        )
    if unknown:
        raise ConfigError(
            f"{source} holds {unknown[0]}, which this architecture has not ({len(unknown)} such)"
        )


def both(
    ours: str, theirs: str, link: Callable[[str, str], Link], parts: tuple[str, ...] = ("weight", "bias")
) -> list[Link]:
    """A link for each of the parts of a layer."""
    return [link(f"{ours}.{part}", f"{theirs}.{part}") for part in parts]


def same(ours: str, theirs: str) -> Link:
    """The same tensor under another name."""
    return Link(ours, (theirs,), lambda t: (t,), lambda ts: ts[0])


def conv1d(ours: str, theirs: str) -> Link:
    """[out, in] <-> [in, out]; a bias is its own transpose."""
    return Link(ours, (theirs,), lambda t: (_transposed(t),), lambda ts: _transposed(ts[0]))


def vocabulary(ours: str, theirs: str, model: ModelSection) -> Link:
    """[padded V, ...] <-> [V, ...]; added rows are zero, no loss ever looks at them."""

    def pad(tensors: tuple[Tensor, ...]) -> Tensor:
        rows = tensors[0]
        return torch.cat([rows, rows.new_zeros(padded_vocab_size(model) - len(rows), *rows.shape[1:])])

    return Link(ours, (theirs,), lambda t: (t[: model.vocab_size],), pad)


def gpt2_qkv(model: ModelSection) -> Callable[[str, str], Link]:
    """[G * (N / G + 2) * D, H] <-> [H, (N + 2 G) * D]; likewise the bias without H."""

    def link(ours: str, theirs: str) -> Link:
        return Link(
            ours,
            (theirs,),
            lambda t: (_transposed(torch.cat(split_qkv(t, model))),),
            lambda ts: merge_qkv(_transposed(ts[0]).chunk(3), model),
        )

    return link


def three_qkv(
    ours: str, theirs: tuple[str, str, str], model: ModelSection, parts: tuple[str, ...]
) -> list[Link]:
    """[G * (N / G + 2) * D, H] <-> [N * D, H] and twice [G * D, H]; likewise the bias without H."""
    return [
        Link(
            f"{ours}.{part}",
            tuple(f"{name}.{part}" for name in theirs),
            lambda t: split_qkv(t, model),
            lambda ts: merge_qkv(ts, model),
        )
        for part in parts
    ]


def halves(ours: str, theirs: tuple[str, str], parts: tuple[str, ...]) -> list[Link]:
    """[2 F, H] <-> twice [F, H]; likewise the bias without H."""
    return [
        Link(
            f"{ours}.{part}",
            tuple(f"{name}.{part}" for name in theirs),
            lambda t: tuple(t.chunk(2)),
            lambda ts: torch.cat(ts),
        )
        for part in parts
    ]


def split_qkv(fused: Tensor, model: ModelSection) -> tuple[Tensor, Tensor, Tensor]:
    """Query [N * D, ...], key and value [G * D, ...] from the fused matrix or bias, ordered by group."""
    groups = query_groups(model)
    each = model.num_attention_heads // groups
    rest = fused.shape[1:]
    by_group = fused.reshape(groups, each + 2, -1, *rest)  # [G, N / G + 2, D, ...]
    q, k, v = by_group[:, :each], by_group[:, each], by_group[:, each + 1]
    return q.reshape(-1, *rest), k.reshape(-1, *rest), v.reshape(-1, *rest)


def merge_qkv(qkv: tuple[Tensor, ...], model: ModelSection) -> Tensor:
    """The inverse of `split_qkv`."""
    groups = query_groups(model)
    size = model.hidden_size // model.num_attention_heads
    rest = qkv[0].shape[1:]
    by_group = [t.reshape(groups, -1, size, *rest) for t in qkv]  # [G, N / G, D, ...] and [G, 1, D, ...]
    return torch.cat(by_group, dim=1).reshape(-1, *rest)


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.t() if tensor.ndim == 2 else tensor
