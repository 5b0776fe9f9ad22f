"""One module per task: how its rows are read and encoded, its head and loss, its answers and scores."""

from __future__ import annotations

from typing import Any

from finetune.task_config import TaskSection
from finetune.tasks.classification import Classification
from finetune.tasks.multi_label import MultiLabel
from finetune.tasks.multiple_choice import MultipleChoice
from finetune.tasks.question_answering import QuestionAnswering
from finetune.tasks.regression import Regression
from finetune.tasks.sft import Sft
from finetune.tasks.tagging import Tagging
from finetune.tasks.task import Task
from pretrain.config.section import Section

TASKS: dict[str, Any] = {
    "classification": Classification,
    "multi_label": MultiLabel,
    "regression": Regression,
    "multiple_choice": MultipleChoice,
    "tagging": Tagging,
    "question_answering": QuestionAnswering,
    "sft": Sft,
}
"""By task.kind."""


def open_task(section: TaskSection, columns: Section) -> Task:
    """The task that a configuration describes.

    Args:
        section: Its `task`.
        columns: Its `data`, or the names of the columns alone.
    """
    task: Task = TASKS[section.kind](section, columns)
    return task
