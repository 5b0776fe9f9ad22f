"""What a checkpoint's model is, how to build it, and its counterpart in transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from finetune import hf_config
from finetune.bert_links import bert_classification_links, bert_pretraining_links
from finetune.gpt_links import gpt2_links, llama_links
from finetune.single_rank import LAYOUT
from finetune.task_config import ClassificationTask, TaskSection
from finetune.tasks.models import BertForSequence
from finetune.weights import Link
from pretrain.config import ConfigError
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


GPT2 = Kind("GPT2LMHeadModel", gpt2_links, lambda of: hf_config.gpt2_config(_gpt(of)))
LLAMA = Kind("LlamaForCausalLM", llama_links, lambda of: hf_config.llama_config(_gpt(of)))


def kind_of(of: Architecture) -> Kind:
    """The class of transformers that computes the same.

    Raises:
        ConfigError: There is none.
    """
    if isinstance(of.model, GPTModelConfig):
        return LLAMA if hf_config.gpt_family(of.model) == "llama" else GPT2
    if of.task is not None and not isinstance(of.task, ClassificationTask):
        raise ConfigError(f"a model for task.kind: {of.task.kind} cannot be exported yet")
    prefix = "Bert" if of.model.norm_position == "post" else "MegatronBert"
    if of.labels is not None:
        return Kind(f"{prefix}ForSequenceClassification", bert_classification_links, _bert_config)
    head = "ForPreTraining" if of.model.add_binary_head else "ForMaskedLM"
    return Kind(prefix + head, bert_pretraining_links, _bert_config)


def build(of: Architecture) -> nn.Module:
    """Our model, whole, in fp32."""
    if isinstance(of.model, GPTModelConfig):
        return GPT(of.model, **LAYOUT)
    if of.labels is not None:
        return BertForSequence(of.model, len(of.labels), **LAYOUT)
    return BertForPreTraining(of.model, **LAYOUT)


def _bert_config(of: Architecture) -> Any:
    assert isinstance(of.model, BertModelConfig)  # kind_of chose it
    return hf_config.bert_config(of.model, None if of.labels is None else list(of.labels))


def _gpt(of: Architecture) -> GPTModelConfig:
    assert isinstance(of.model, GPTModelConfig)  # kind_of chose it
    return of.model
