"""Our GPT <-> GPT2LMHeadModel and LlamaForCausalLM."""

from __future__ import annotations

from finetune.weights import Link, both, conv1d, gpt2_qkv, halves, same, three_qkv, vocabulary
from pretrain.config.model import GPTModelConfig


def gpt2_links(model: GPTModelConfig) -> list[Link]:
    """GPT in the style of GPT-2 <-> GPT2LMHeadModel."""
    links = [
        vocabulary("embedding.word_embeddings.weight", "transformer.wte.weight", model),
        same("embedding.position_embeddings.weight", "transformer.wpe.weight"),
    ]
    for n in range(model.num_layers):
        ours, theirs = f"decoder.layers.{n}", f"transformer.h.{n}"
        attention, mlp = f"{ours}.self_attention", f"{ours}.mlp"
        links += both(f"{ours}.input_layernorm", f"{theirs}.ln_1", same)
        links += both(f"{attention}.linear_qkv", f"{theirs}.attn.c_attn", gpt2_qkv(model))
        links += both(f"{attention}.linear_proj", f"{theirs}.attn.c_proj", conv1d)
        links += both(f"{ours}.pre_mlp_layernorm", f"{theirs}.ln_2", same)
        links += both(f"{mlp}.linear_fc1", f"{theirs}.mlp.c_fc", conv1d)
        links += both(f"{mlp}.linear_fc2", f"{theirs}.mlp.c_proj", conv1d)
    return [*links, *both("decoder.final_layernorm", "transformer.ln_f", same), *_output(model)]


def llama_links(model: GPTModelConfig) -> list[Link]:
    """GPT in the style of Llama <-> LlamaForCausalLM."""
    parts = ("weight", "bias") if model.add_bias_linear else ("weight",)
    links = [vocabulary("embedding.word_embeddings.weight", "model.embed_tokens.weight", model)]
    for n in range(model.num_layers):
        ours, theirs = f"decoder.layers.{n}", f"model.layers.{n}"
        attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"
        links += [same(f"{ours}.input_layernorm.weight", f"{theirs}.input_layernorm.weight")]
        qkv = (f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj")
        links += three_qkv(f"{ours}.self_attention.linear_qkv", qkv, model, parts)
        links += both(f"{ours}.self_attention.linear_proj", f"{attention}.o_proj", same, parts)
        links += [same(f"{ours}.pre_mlp_layernorm.weight", f"{theirs}.post_attention_layernorm.weight")]
        links += halves(f"{ours}.mlp.linear_fc1", (f"{mlp}.gate_proj", f"{mlp}.up_proj"), parts)
        links += both(f"{ours}.mlp.linear_fc2", f"{mlp}.down_proj", same, parts)
    return [*links, same("decoder.final_layernorm.weight", "model.norm.weight"), *_output(model)]


def _output(model: GPTModelConfig) -> list[Link]:
    if not model.untie_embeddings_and_output_weights:
        return []
    return [vocabulary("output_layer.weight", "lm_head.weight", model)]
