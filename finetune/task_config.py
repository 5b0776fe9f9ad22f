"""The sections `task` and `data` of each kind of finetuning.

Files are jsonl, csv, tsv or parquet by their ending, unless a section says otherwise.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pretrain.config.section import NonNegativeInt, PositiveInt, Probability, Rate, Section


class TaskSection(Section):
    """What every task has."""

    scores: ClassVar[tuple[str, ...]] = ()
    """What an evaluation reports besides the loss."""
    smallest_seq_length: ClassVar[int] = 3
    """Special tokens and one of text."""
    has_labels: ClassVar[bool] = False
    """Whether the outputs have names, which `labels.json` lists."""
    kind: str

    def length_problems(self, seq_length: int) -> list[str]:
        """What is wrong with `batch.seq_length` for this task."""
        if seq_length >= self.smallest_seq_length:
            return []
        return [
            f"batch.seq_length: {seq_length} leaves no room for text in task.kind: {self.kind}; "
            f"{self.smallest_seq_length} at least"
        ]


class ClassificationTask(TaskSection):
    """One label for a text or a pair of texts."""

    has_labels = True
    scores = ("accuracy", "f1_macro", "f1_weighted", "mcc")
    kind: Literal["classification"]
    dropout: Rate | None = None
    """Before the new head; null takes the model's hidden_dropout."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weighs each row by rows / (labels * rows with its label), as scikit-learn does."""


class MultiLabelTask(TaskSection):
    """Any number of labels for a text or a pair of texts."""

    has_labels = True
    scores = ("f1_micro", "f1_macro", "exact_match")
    kind: Literal["multi_label"]
    dropout: Rate | None = None
    threshold: Probability = 0.5
    """A label applies from this probability on."""


class RegressionTask(TaskSection):
    """A number for a text or a pair of texts; mean squared error."""

    scores = ("pearson", "spearman", "rmse", "mae")
    kind: Literal["regression"]
    dropout: Rate | None = None


class MultipleChoiceTask(TaskSection):
    """Which of several choices goes with a text (SWAG; Zellers et al., 2018)."""

    scores = ("accuracy",)
    smallest_seq_length = 5
    kind: Literal["multiple_choice"]
    dropout: Rate | None = None


class TaggingTask(TaskSection):
    """A tag for each word: named entities, parts of speech."""

    has_labels = True
    scores = ("precision", "recall", "f1", "accuracy")
    kind: Literal["tagging"]
    dropout: Rate | None = None
    class_weights: Literal["none", "balanced"] = "none"
    """As for classification, over words."""


class QuestionAnsweringTask(TaskSection):
    """The passage of a context that answers a question (SQuAD; Rajpurkar et al., 2016, 2018)."""

    scores = ("exact_match", "f1")
    smallest_seq_length = 8
    kind: Literal["question_answering"]
    no_answer: bool = False
    """Questions may have no answer (SQuAD 2.0)."""
    no_answer_threshold: float = 0.0
    """How much better than the best answer "no answer" must score, in logits, to be given."""
    stride: NonNegativeInt = 128
    """Tokens that a window of a long context shares with the one before it; fewer than fit beside the longest
    question: batch.seq_length - max_question_tokens - 3."""
    max_question_tokens: PositiveInt = 64
    """Longer questions are cut."""
    max_answer_tokens: PositiveInt = 30
    n_best: PositiveInt = 20
    """Candidates for start and end of an answer, and answers that `predict` lists."""

    def length_problems(self, seq_length: int) -> list[str]:
        """Also a length in which windows beside the longest question could not move on."""
        room = max(0, seq_length - self.max_question_tokens - 3)
        problems = super().length_problems(seq_length)
        if problems or self.stride < room:
            return problems
        return [
            f"task.stride: {self.stride} is not below the {room} tokens of a context that batch.seq_length: "
            f"{seq_length} has room for beside a question of task.max_question_tokens: "
            f"{self.max_question_tokens} and 3 special tokens, so that windows could not move on"
        ]


class SftTask(TaskSection):
    """Responses to prompts by a GPT; the loss is on the response only."""

    scores = ("perplexity",)
    smallest_seq_length = 2
    kind: Literal["sft"]
    template: str = "{prompt}"
    """What the model reads before the response; `{prompt}` stands for the row's prompt."""
    chat_template: str | None = None
    """For `data.messages`: Jinja text that writes a conversation, as transformers has it; goes with the
    exported tokenizer."""
    packing: bool = False
    """Several rows in one sequence; they neither see nor shift each other."""


AnyTask = Annotated[
    ClassificationTask
    | MultiLabelTask
    | RegressionTask
    | MultipleChoiceTask
    | TaggingTask
    | QuestionAnsweringTask
    | SftTask,
    Field(discriminator="kind"),
]


class TextColumns(Section):
    """Columns of texts."""

    text: str = "text"
    """Column of the text; longer ones are cut to `batch.seq_length` tokens."""
    text_pair: str | None = None
    """Column of a second text; null has none."""
    label: str = "label"
    """Column of the label: text, whole number or true/false; of a regression's number."""


class MultiLabelColumns(TextColumns):
    """Columns of texts with several labels."""

    label: str = "labels"
    """Column of the labels: a list, or one text that `separator` splits."""
    separator: Annotated[str, Field(min_length=1)] = "|"


class ChoiceColumns(Section):
    """Columns of a text with choices, every row as many."""

    text: str = "text"
    """Column of the text that all choices go with; a choice stands behind it as the second of a pair."""
    choices: str = "choices"
    """Column of the choices: a list of texts."""
    label: str = "label"
    """Column of the right one: its number, counted from 0, or its text."""


class TagColumns(Section):
    """Columns of tagged words, in jsonl and parquet as lists.

    A file with another ending than .jsonl, .json, .csv, .tsv or .parquet is CoNLL: a word a line with its
    columns, a blank line between sentences.
    """

    words: str = "words"
    tags: str = "tags"
    word_column: int = 0
    """CoNLL: number of the word's column, from 0; negative ones count from the last."""
    tag_column: int = -1


class QuestionColumns(Section):
    """SQuAD: .json as published; or tables whose `answers` are {"text": [...], "answer_start": [...]}."""

    id: str = "id"
    question: str = "question"
    context: str = "context"
    answers: str = "answers"


class ResponseColumns(Section):
    """Columns of prompts and responses."""

    prompt: str = "prompt"
    response: str = "response"
    messages: str | None = None
    """Column of a conversation instead, a list of {"role", "content"}; each message of the role assistant is
    a response to what stands before it. Needs `task.chat_template`."""


COLUMNS: dict[str, type[Section]] = {
    "classification": TextColumns,
    "multi_label": MultiLabelColumns,
    "regression": TextColumns,
    "multiple_choice": ChoiceColumns,
    "tagging": TagColumns,
    "question_answering": QuestionColumns,
    "sft": ResponseColumns,
}
"""The names of the columns alone, by task.kind."""


class DataSection(Section):
    """Files of a task."""

    train: str
    validation: str


class TextData(DataSection, TextColumns):
    """Labelled texts."""


class MultiLabelData(DataSection, MultiLabelColumns):
    """Texts with several labels."""


class ChoiceData(DataSection, ChoiceColumns):
    """Texts with choices."""


class TaggedData(DataSection, TagColumns):
    """Tagged sentences."""


class QuestionData(DataSection, QuestionColumns):
    """Questions with answers."""


class ResponseData(DataSection, ResponseColumns):
    """Prompts with responses."""
