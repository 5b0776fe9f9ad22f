"""Our BERT <-> transformers' BERT classes (post-norm) and MegatronBert classes (pre-norm)."""

from __future__ import annotations

from finetune.weights import Link, both, same, three_qkv, vocabulary
from pretrain.config.model import BertModelConfig

PARTS = ("weight", "bias")


def bert_encoder_links(model: BertModelConfig, pooler: bool = True) -> list[Link]:
    """BertEncoder <-> the `bert.` part of BertFor... or, for a pre-norm model, MegatronBertFor..."""
    post = model.norm_position == "post"
    ours, theirs = "encoder.embeddings", "bert.embeddings"
    links = [
        vocabulary(f"{ours}.word_embeddings.weight", f"{theirs}.word_embeddings.weight", model),
        same(f"{ours}.position_embeddings.weight", f"{theirs}.position_embeddings.weight"),
        same(f"{ours}.token_type_embeddings.weight", f"{theirs}.token_type_embeddings.weight"),
    ]
    if post:
        links += both(f"{ours}.norm", f"{theirs}.LayerNorm", same)
    else:
        links += both("encoder.final_norm", "bert.encoder.ln", same)
    norms = ("attention.output.LayerNorm", "output.LayerNorm") if post else ("attention.ln", "ln")
    for n in range(model.num_layers):
        ours, theirs = f"encoder.layers.{n}", f"bert.encoder.layer.{n}"
        attention = f"{theirs}.attention.self"
        qkv = (f"{attention}.query", f"{attention}.key", f"{attention}.value")
        links += three_qkv(f"{ours}.attention.linear_qkv", qkv, model, PARTS)
        links += both(f"{ours}.attention.linear_proj", f"{theirs}.attention.output.dense", same)
        links += both(f"{ours}.attention_norm", f"{theirs}.{norms[0]}", same)
        links += both(f"{ours}.mlp.linear_fc1", f"{theirs}.intermediate.dense", same)
        links += both(f"{ours}.mlp.linear_fc2", f"{theirs}.output.dense", same)
        links += both(f"{ours}.mlp_norm", f"{theirs}.{norms[1]}", same)
    return links + (both("encoder.pooler", "bert.pooler.dense", same) if pooler else [])


def bert_pretraining_links(model: BertModelConfig) -> list[Link]:
    """BertForPreTraining (ours) <-> ...ForPreTraining or, without binary head, ...ForMaskedLM."""
    return [
        *bert_encoder_links(model, pooler=model.add_binary_head),
        *both("mlm_head.transform", "cls.predictions.transform.dense", same),
        *both("mlm_head.norm", "cls.predictions.transform.LayerNorm", same),
        vocabulary("mlm_head.output.bias", "cls.predictions.bias", model),
        *(both("nsp_head", "cls.seq_relationship", same) if model.add_binary_head else []),
    ]


def bert_classification_links(model: BertModelConfig) -> list[Link]:
    """BertForSequence or BertForChoices <-> ...ForSequenceClassification or ...ForMultipleChoice."""
    return [*bert_encoder_links(model), *both("head", "classifier", same)]


def bert_token_links(model: BertModelConfig) -> list[Link]:
    """BertForTokens <-> ...ForTokenClassification."""
    return [*bert_encoder_links(model, pooler=False), *both("head", "classifier", same)]


def bert_span_links(model: BertModelConfig) -> list[Link]:
    """BertForSpans <-> ...ForQuestionAnswering."""
    return [*bert_encoder_links(model, pooler=False), *both("head", "qa_outputs", same)]
