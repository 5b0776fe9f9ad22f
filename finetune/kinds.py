"""What a checkpoint's model is, how to build it, and its counterpart in transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from finetune import hf_config
from finetune.bert_links import (
    bert_classification_links,
    bert_pretraining_links,
    bert_span_links,
    bert_token_links,
)
from finetune.gpt_links import gpt2_links, llama_links
from finetune.single_rank import LAYOUT
from finetune.task_config import COLUMNS, ClassificationTask, TaskSection
from finetune.tasks import open_task
from finetune.weights import Link
from pretrain.config.model import BertModelConfig, GPTModelConfig, ModelConfig
from pretrain.models.bert import BertForPreTraining
from pretrain.models.gpt import GPT


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a checkpoint's model is.

    Attributes:
        model: The model section.
        labels: Names of a classifier's labels; None for a model without them.
        task: What a finetuned model is for; None for a pretraining model.
    """

    model: ModelConfig
    labels: tuple[str, ...] | None = None
    task: TaskSection | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """The counterpart in transformers."""

    hf_class: str
    links: Callable[[Any], list[Link]]
    hf_config: Callable[[Architecture], Any]


PROBLEM_TYPES = {
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
"""transformers' name for the loss of a sequence classifier."""

GPT2 = Kind("GPT2LMHeadModel", gpt2_links, lambda of: hf_config.gpt2_config(_gpt(of)))
LLAMA = Kind("LlamaForCausalLM", llama_links, lambda of: hf_config.llama_config(_gpt(of)))


def kind_of(of: Architecture) -> Kind:
    """The class of transformers that computes the same.

    Raises:
        ConfigError: There is none.
    """
    if isinstance(of.model, GPTModelConfig):
        return LLAMA if hf_config.gpt_family(of.model) == "llama" else GPT2
    prefix = "Bert" if of.model.norm_position == "post" else "MegatronBert"
    if (kind := task_kind(of)) is not None:
        head, links = {
            "tagging": ("ForTokenClassification", bert_token_links),
            "question_answering": ("ForQuestionAnswering", bert_span_links),
            "multiple_choice": ("ForMultipleChoice", bert_classification_links),
        }.get(kind, ("ForSequenceClassification", bert_classification_links))
        return Kind(prefix + head, links, _bert_config)
    head = "ForPreTraining" if of.model.add_binary_head else "ForMaskedLM"
    return Kind(prefix + head, bert_pretraining_links, _bert_config)


def build(of: Architecture) -> nn.Module:
    """Our model, whole, in fp32."""
    if isinstance(of.model, GPTModelConfig):
        return GPT(of.model, **LAYOUT)
    if (kind := task_kind(of)) is not None:
        section = of.task or ClassificationTask(kind="classification")
        return open_task(section, COLUMNS[kind]()).build(of.model, of.labels or (), **LAYOUT)
    return BertForPreTraining(of.model, **LAYOUT)


def task_kind(of: Architecture) -> str | None:
    """What a model is for; None for a pretraining model. A classifier from elsewhere has labels alone."""
    if of.task is not None:
        return of.task.kind
    return None if of.labels is None else "classification"


def _bert_config(of: Architecture) -> Any:
    assert isinstance(of.model, BertModelConfig)  # kind_of chose it
    kind = task_kind(of)
    outputs = ["LABEL_0"] if kind == "regression" else None  # one output; the name is transformers' own
    labels = outputs if of.labels is None else list(of.labels)
    return hf_config.bert_config(of.model, labels, PROBLEM_TYPES.get(kind or ""))


def _gpt(of: Architecture) -> GPTModelConfig:
    assert isinstance(of.model, GPTModelConfig)  # kind_of chose it
    return of.model
