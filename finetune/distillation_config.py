"""The section `distillation`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pretrain.config.section import Probability, Section

TASKS = ("classification", "tagging", "sft")
"""Kinds of tasks that a student can learn from a teacher."""


class DistillationConfig(Section):
    """A larger model as teacher: its logits (Hinton et al., 2015) and hidden states (Jiao et al., 2020)."""

    teacher: str
    """Run directory or checkpoint of a model for the same task, with the same labels and tokenizer."""
    temperature: Annotated[float, Field(gt=0.0)] = 2.0
    """Both models' logits are divided by it."""
    logits_weight: Probability = 0.5
    """w in loss = (1 - w) * task loss + w * temperature^2 * KL(teacher, student)."""
    hidden_weight: Annotated[float, Field(ge=0.0)] = 0.0
    """Of the mean squared difference between hidden states: each student layer's and those of the teacher at
    the same relative depth; needs the same hidden_size."""
