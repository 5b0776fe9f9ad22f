"""Windows over long contexts: settings that leave no way to move on, and questions that do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune.config import load_finetune_config, with_model
from finetune.task_config import QuestionAnsweringTask, QuestionColumns
from finetune.tasks import open_task
from finetune.tasks.squad import QuestionRow
from finetune.tasks.task import Encoder
from pretrain.config import ConfigError
from pretrain.config.model import BertModelConfig

CONFIG = Path(__file__).parents[3] / "configs/finetune/question-answering.yaml"
BERT = BertModelConfig(
    kind="bert",
    vocab_size=900,
    num_layers=1,
    hidden_size=32,
    ffn_hidden_size=64,
    num_attention_heads=2,
    max_position_embeddings=512,
)


@pytest.mark.parametrize("settings", [(384, 316, 64), (384, 317, 63), (384, 0, 380), (195, 127, 64)])
def test_settings_that_let_windows_move_on_are_taken(settings):
    config = with_model(configured(*settings), BERT)
    assert (config.batch.seq_length, config.task.stride, config.task.max_question_tokens) == settings


@pytest.mark.parametrize(
    ("settings", "room"),
    [((384, 317, 64), 317), ((195, 128, 64), 128), ((384, 0, 381), 0), ((48, 4, 64), 0)],
)
def test_settings_that_may_leave_no_way_to_move_on_are_told_at_once(settings, room):
    seq_length, stride, question = settings
    with pytest.raises(ConfigError) as error:
        with_model(configured(*settings), BERT)
    assert error.value.problems == [
        f"task.stride: {stride} is not below the {room} tokens of a context that batch.seq_length: "
        f"{seq_length} has room for beside a question of task.max_question_tokens: {question} and 3 special "
        "tokens, so that windows could not move on"
    ]


def test_a_length_without_room_for_text_is_one_problem():
    with pytest.raises(ConfigError) as error:
        with_model(configured(7, 0, 4), BERT)
    assert [problem.split(",")[0].split(" leaves")[0] for problem in error.value.problems] == [
        "batch.seq_length: 7"
    ]


def configured(seq_length, stride, question):
    settings = [f"batch.seq_length={seq_length}", f"task.stride={stride}"]
    return load_finetune_config(CONFIG, [*settings, f"task.max_question_tokens={question}"])


def test_a_context_that_fits_in_one_window_needs_no_way_to_move_on(codec):
    ask = open_task(QuestionAnsweringTask(kind="question_answering", stride=128), QuestionColumns())
    rows = [QuestionRow("f:1", "a", "What comes back?", "The return statement gives a value.")]
    examples = ask.encode(rows, Encoder(codec, 40))
    assert len(examples) == 1 and examples.truncated == 0
    question, context = codec.encode(rows[0].question), codec.encode(rows[0].context)
    wanted = [codec.cls_id, *question, codec.sep_id, *context, codec.sep_id]
    assert examples.sequences["tokens"][0].tolist() == wanted
    exact = ask.encode(rows, Encoder(codec, len(wanted)))
    assert len(exact) == 1 and np.array_equal(exact.sequences["tokens"][0], wanted)


def test_a_row_that_cannot_be_read_in_windows_is_named(codec):
    ask = open_task(QuestionAnsweringTask(kind="question_answering", stride=30), QuestionColumns())
    context = "The return statement gives a value back to the caller of the function. " * 3
    rows = [
        QuestionRow("f.jsonl:8", "a", "What?", "The value."),
        QuestionRow("f.jsonl:9", "b", "Why?", context),
    ]
    with pytest.raises(ConfigError, match=r"f.jsonl:9: the question has \d+ tokens, .* task.stride: 30"):
        ask.encode(rows, Encoder(codec, 32))
    with pytest.raises(ConfigError, match=r"f.jsonl:8: the question has \d+ tokens, batch.seq_length: 4"):
        ask.encode(rows, Encoder(codec, 4))
