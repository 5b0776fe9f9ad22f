"""The peers: transformers' models and a plain torch GPT in a plain loop, and megatron-core without an engine.

Two kinds of mixed arithmetic, both with fp32 master weights, fp32 Adam moments and matrix products in bf16:
`amp` keeps fp32 weights and casts in autocast, as nanoGPT and transformers' Trainer do; `bf16` keeps bf16
weights beside the fp32 ones, as our engine does. In both the cross entropy is computed in fp32. `fp32` has
nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.training.work import ADAMW, CLIP_GRAD, IGNORED, Rounds, Work, batch

Loss = Callable[[dict[str, Tensor]], Tensor]
"""The mean training loss of one batch."""


class Updates:
    """Gradient clipping and fused AdamW on fp32 weights, decay on matrices only."""

    def __init__(self, model: nn.Module, arithmetic: str) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.master = self.parameters
        if arithmetic == "bf16":
            self.master = [nn.Parameter(p.detach().float()) for p in self.parameters]
            model.to(torch.bfloat16)
        plain = {**ADAMW, "weight_decay": 0.0}
        groups = [
            {**ADAMW, "params": [p for p in self.master if p.ndim >= 2]},
            {**plain, "params": [p for p in self.master if p.ndim < 2]},
        ]
        self.adamw = torch.optim.AdamW(groups, fused=True)

    def step(self) -> None:
        """Clip, update, and forget the gradients."""
        if self.master is not self.parameters:
            for master, parameter in zip(self.master, self.parameters, strict=True):
                master.grad = parameter.grad.float()
                parameter.grad = None
        nn.utils.clip_grad_norm_(self.master, CLIP_GRAD)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        if self.master is not self.parameters:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self.master)


def plain_loop(work: Work, rounds: Rounds, model: nn.Module, loss_of: Loss, arithmetic: str) -> None:
    """Forward, backward and update, for as many rounds as the driver wants."""
    model.train()
    updates = Updates(model, arithmetic)
    step = 0
    while rounds.another():
        tensors = {name: torch.from_numpy(array) for name, array in batch(work, step).items()}
        autocast = torch.autocast("cpu", torch.bfloat16) if arithmetic == "amp" else contextlib.nullcontext()
        with autocast:
            loss = loss_of(tensors)
        loss.backward()
        updates.step()
        rounds.loss = float(loss.detach())
        step += 1


def transformers_model(work: Work, rounds: Rounds, arithmetic: str, compiled: bool) -> None:
    """GPT2LMHeadModel, LlamaForCausalLM or BertForPreTraining with its SDPA attention."""
    model, loss_of = {"gpt": _gpt2, "llama": _llama, "bert": _bert}[work.kind](work)
    if compiled:
        model.compile()
    plain_loop(work, rounds, model, loss_of, arithmetic)


def plain_gpt(work: Work, rounds: Rounds, arithmetic: str, compiled: bool) -> None:
    """The model of nanoGPT."""
    model: Any = PlainGPT(work)
    if compiled:
        model.compile()
    plain_loop(work, rounds, model, lambda b: model(b["tokens"], b["labels"]), arithmetic)


def _gpt2(work: Work) -> tuple[nn.Module, Loss]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=work.vocab_size, n_positions=work.seq_length, n_embd=work.hidden_size,
        n_layer=work.num_layers, n_head=work.num_attention_heads, n_inner=work.ffn_hidden_size,
        embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return _causal(GPT2LMHeadModel(config))


def _llama(work: Work) -> tuple[nn.Module, Loss]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=work.vocab_size, hidden_size=work.hidden_size, intermediate_size=work.ffn_hidden_size,
        num_hidden_layers=work.num_layers, num_attention_heads=work.num_attention_heads,
        max_position_embeddings=work.seq_length, use_cache=False, tie_word_embeddings=False,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return _causal(LlamaForCausalLM(config))


def _causal(model: Any) -> tuple[nn.Module, Loss]:
    return model, lambda b: model(b["tokens"], shift_labels=b["labels"], labels=b["labels"]).loss


def _bert(work: Work) -> tuple[nn.Module, Loss]:
    from transformers import BertConfig, BertForPreTraining

    config = BertConfig(
        vocab_size=work.vocab_size, hidden_size=work.hidden_size, num_hidden_layers=work.num_layers,
        num_attention_heads=work.num_attention_heads, intermediate_size=work.ffn_hidden_size,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        max_position_embeddings=work.seq_length,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    model = BertForPreTraining(config)

    def loss_of(b: dict[str, Tensor]) -> Tensor:
        longest = int(b["padding_mask"].sum(1).max())  # its best mode: padded to the longest of the batch
        labels = torch.full_like(b["tokens"], IGNORED)
        labels.view(-1)[b["masked_positions"]] = b["masked_labels"]
        output = model(
            b["tokens"][:, :longest], attention_mask=b["padding_mask"][:, :longest].long(),
            token_type_ids=b["token_types"][:, :longest],
        )  # fmt: skip
        mlm = F.cross_entropy(
            output.prediction_logits.float().flatten(0, 1),
            labels[:, :longest].reshape(-1),
            ignore_index=IGNORED,
        )
        nsp = F.cross_entropy(output.seq_relationship_logits.float(), b["next_sentence_labels"])
        return mlm + nsp

    return model, loss_of


class PlainBlock(nn.Module):
    """One pre-norm layer."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        width = work.hidden_size
        self.heads = work.num_attention_heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, work.ffn_hidden_size), nn.Linear(work.ffn_hidden_size, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, H] to [B, S, H]."""
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm_1(x)).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class PlainGPT(nn.Module):
    """GPT-2 as nanoGPT writes it: tied embeddings, SDPA, no dropout."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        padded = -(-work.vocab_size // 64) * 64  # nanoGPT pads to a multiple of 64
        self.tokens = nn.Embedding(padded, work.hidden_size)
        self.positions = nn.Embedding(work.seq_length, work.hidden_size)
        self.blocks = nn.ModuleList(PlainBlock(work) for _ in range(work.num_layers))
        self.norm = nn.LayerNorm(work.hidden_size)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of [B, S] tokens."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
