"""Encoding, answers, losses and scores of the tasks, against transformers, torch and worked examples."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data_tools.hf_tokenizer import PROBES, write_hf_files
from finetune.batches import IGNORED_LABEL
from finetune.single_rank import LAYOUT, single_rank
from finetune.task_config import (
    COLUMNS,
    ClassificationTask,
    MultiLabelTask,
    QuestionAnsweringTask,
    RegressionTask,
    SftTask,
    TaggingTask,
)
from finetune.tasks import open_task
from finetune.tasks.models import BertForSequence, BertForSpans, BertForTokens
from finetune.tasks.pairs import longest_first
from finetune.tasks.question_answering import candidates
from finetune.tasks.sft import PromptRow, packed
from finetune.tasks.squad import GoldAnswer, QuestionRow
from finetune.tasks.tagging import TaggedRow, word_positions
from finetune.tasks.task import Encoder, class_weights
from finetune.tasks.text_rows import TextRow
from pretrain.config import ConfigError
from pretrain.config.model import BertModelConfig, GPTModelConfig
from pretrain.models.gpt import GPT

SIZES = {
    "vocab_size": 900,
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 64,
    "num_attention_heads": 2,
    "max_position_embeddings": 48,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}
BERT = BertModelConfig(kind="bert", init_std=0.2, **SIZES)


def task(section):
    return open_task(section, COLUMNS[section.kind]())


@pytest.fixture(scope="module")
def theirs(codec, tmp_path_factory):
    """The same tokenizer as transformers loads it after an export."""
    directory = tmp_path_factory.mktemp("tokenizer")
    write_hf_files(codec, "bert", 48, directory)
    return AutoTokenizer.from_pretrained(directory)


def test_spans_are_the_characters_that_transformers_gives(codec, theirs):
    texts = [*PROBES, "The return  caf\u00e9 \u65e5\n\tzed"]
    for text, encoding in zip(texts, codec.encode_with_spans(texts), strict=True):
        assert encoding.ids.tolist() == codec.encode(text)
        wanted = theirs(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        assert encoding.ids.tolist() == wanted["input_ids"]
        covered = set()
        for token, span, (first, last) in zip(
            encoding.ids, encoding.spans.tolist(), wanted["offset_mapping"], strict=True
        ):
            covered |= set(range(*span))
            if codec.is_byte[token]:  # theirs is that of a whole run of characters without pieces
                assert first <= span[0] < span[1] == span[0] + 1 <= last
            else:
                assert (first, last) == tuple(span), text
        assert covered == set(range(len(text)))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 30))
def test_pairs_are_cut_longest_first(first, second, room):
    a, b = longest_first(first, second, room)
    assert a <= first and b <= second and a + b == min(first + second, room)
    if first + second > room:
        assert abs(a - b) <= 1 or min(a, b) == min(first, second)


@pytest.mark.parametrize("lengths", [(3, 60), (60, 3), (40, 41), (60, 20), (5, 6)])
def test_pairs_become_what_transformers_makes_of_them(codec, theirs, lengths):
    first, second = ("return value statement " * length for length in lengths)
    rows = [TextRow("f:1", first, second, "a")]
    encoder = Encoder(codec, 24, ("a", "b"))
    examples = task(ClassificationTask(kind="classification")).encode(rows, encoder)
    wanted = theirs(first, second, truncation=True, max_length=24)
    assert examples.sequences["tokens"][0].tolist() == wanted["input_ids"]
    assert examples.sequences["token_types"][0].tolist() == wanted["token_type_ids"]
    assert examples.targets["labels"].tolist() == [0]
    assert examples.truncated == 1


def test_single_texts_get_cls_and_sep_and_are_cut(codec):
    rows = [TextRow("f:1", "a return value"), TextRow("f:2", "the statement " * 20)]
    examples = task(ClassificationTask(kind="classification")).encode(rows, Encoder(codec, 16))
    tokens = [t.tolist() for t in examples.sequences["tokens"]]
    assert tokens[0] == [2, *codec.encode(rows[0].text), 3]
    assert tokens[1] == [2, *codec.encode(rows[1].text)[:14], 3]
    assert examples.truncated == 1 and examples.targets == {}


def test_a_tokenizer_without_cls_is_refused(tokenizer_model):
    from data_tools.tokenizer import load_tokenizer

    codec = load_tokenizer(tokenizer_model)
    codec.cls_id = None
    with pytest.raises(ConfigError, match="lacks"):
        task(ClassificationTask(kind="classification")).encode([TextRow("f:1", "a")], Encoder(codec, 16))


def test_the_first_token_of_a_word_has_its_tag(codec, theirs):
    words = ("The", "caf\u00e9", "returns", "3.5", "values")
    rows = [
        TaggedRow("f:1", words, ("O", "B-X", "O", "B-Y", "I-Y")),
        TaggedRow("f:2", words * 9, ("O",) * 45),
    ]
    labels = ("B-X", "B-Y", "I-Y", "O")
    examples = task(TaggingTask(kind="tagging")).encode(rows, Encoder(codec, 32, labels))
    encoded = theirs(" ".join(words), return_offsets_mapping=True)
    starts = [" ".join(words).index(word) for word in words]
    wanted = [IGNORED_LABEL] * len(encoded["input_ids"])
    for start, tag in zip(starts, rows[0].tags, strict=True):
        holds = [a <= start < b for a, b in encoded["offset_mapping"]]
        wanted[holds.index(True)] = labels.index(tag)
    assert examples.sequences["tokens"][0].tolist() == encoded["input_ids"]
    assert examples.sequences["tags"][0].tolist() == wanted
    assert len(examples.sequences["tokens"][1]) == 32 and examples.truncated == 1
    cut = examples.notes[1]
    assert (cut[-20:] == -1).all() and (cut < 31).all()


def test_a_word_of_which_no_token_is_left_has_no_place(codec):
    class Dropping:
        """Spans of a tokenizer that drops the second of three words."""

        ids, spans = np.array([5, 6]), np.array([[0, 1], [4, 5]])

    assert word_positions(["a", "x", "b"], Dropping).tolist() == [0, 2, 1]


def test_answers_of_taggers_and_their_scores():
    tags = task(TaggingTask(kind="tagging"))
    labels = ("B-X", "I-X", "O")
    rows = [
        TaggedRow("f:1", ("a", "b", "c"), ("B-X", "I-X", "O")),
        TaggedRow("f:2", ("d", "e"), ("O", "B-X")),
    ]
    logits = [np.eye(3)[[2, 0, 1, 2, 2]] * 9, np.eye(3)[[2, 0, 2]] * 9]

    class Examples:
        notes = [np.array([1, 2, 3]), np.array([1, -1])]

    answers = tags.answers(logits, Examples, rows, labels)
    assert [answer["tags"] for answer in answers] == [["B-X", "I-X", "O"], ["B-X", "O"]]
    assert answers[1]["scores"][1] is None and answers[0]["scores"][0] > 0.99
    scores = tags.score(answers, rows, labels, 0.0)
    assert scores == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "accuracy": pytest.approx(3 / 5)}
    assert [tags.error(a, r) for a, r in zip(answers, rows, strict=True)] == [0, 2]
    assert tags.baseline(rows, rows) == {"majority_tag_accuracy": pytest.approx(2 / 5)}


def test_tags_without_entities_are_scored_as_tags():
    tags = task(TaggingTask(kind="tagging"))
    rows = [TaggedRow("f:1", ("a", "b", "c"), ("N", "V", "V"))]
    answers = [{"tags": ["N", "V", "N"]}]
    scores = tags.score(answers, rows, ("N", "V"), 0.0)
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["precision"] == pytest.approx((1 / 2 + 1) / 2)
    assert scores["recall"] == pytest.approx((1 + 1 / 2) / 2)


CONTEXT = "The return statement gives a value back to the caller of the function. " * 3


def question_row(text="a value", context=CONTEXT, answers=True):
    gold = (GoldAnswer(text, context.index(text)),)
    return QuestionRow("f:1", "q", "What comes back?", context, gold if answers else None)


@pytest.mark.parametrize("text", ["The return", "a value", "caller", "of the function."])
def test_windows_cover_the_context_and_point_at_the_answer(codec, text):
    ask = task(QuestionAnsweringTask(kind="question_answering", stride=8))
    row = question_row(text)
    examples = ask.encode([row], Encoder(codec, 40))
    assert len(examples) > 2 and examples.truncated == 1 and (examples.rows == 0).all()
    covered = set()
    found = 0
    for number, spans in enumerate(examples.notes):
        tokens = examples.sequences["tokens"][number]
        assert len(tokens) == len(spans) <= 40 and tokens[0] == 2 and tokens[-1] == 3
        for begin, end in spans[spans[:, 0] >= 0]:
            covered |= set(range(begin, end))
        first, last = examples.targets["labels"][number]
        if first:
            found += 1
            assert CONTEXT[spans[first, 0] : spans[last, 1]].strip() == text
        else:
            assert last == 0
    assert covered == set(range(len(CONTEXT))) and found


def test_a_stride_that_does_not_move_on_is_refused(codec):
    ask = task(QuestionAnsweringTask(kind="question_answering", stride=40))
    with pytest.raises(ConfigError, match="task.stride: 40"):
        ask.encode([question_row()], Encoder(codec, 40))


def test_candidates_are_the_best_spans_by_exhaustive_search():
    generator = np.random.default_rng(3)
    for _ in range(20):
        logits = generator.normal(size=(12, 2))
        spans = np.array([[-1, -1]] * 3 + [[i, i + 1] for i in range(8)] + [[-1, -1]])
        every = sorted(
            (
                (logits[s, 0] + logits[e, 1], s - 3, e - 2)
                for s in range(3, 11)
                for e in range(s, min(s + 4, 11))
            ),
            reverse=True,
        )
        found = candidates(logits, spans, 100, 4)
        assert [(c.start, c.end) for c in found] == [(s, e) for _, s, e in every]


def test_the_answer_is_the_best_of_all_windows_or_none(codec):
    section = QuestionAnsweringTask(kind="question_answering", stride=8, no_answer=True, n_best=5)
    ask = task(section)
    row = question_row(answers=False)
    examples = ask.encode([row], Encoder(codec, 40))
    assert examples.targets == {}
    logits = [np.zeros((len(t), 2)) for t in examples.sequences["tokens"]]
    at = int(np.flatnonzero(examples.notes[1][:, 0] >= 0)[3])
    logits[1][at] = (5.0, 4.0)
    begin, end = examples.notes[1][at]
    for values in logits:
        values[0] = (1.0, 1.0)
    (answer,) = ask.answers(logits, examples, [row], ())
    assert answer["answer"] and answer["answer"] == CONTEXT[begin:end].strip()
    assert answer["answer"] == CONTEXT[answer["start"] : answer["end"]]
    assert len(answer["n_best"]) == 6 and sum(a["score"] for a in answer["n_best"]) == pytest.approx(1.0)
    for values in logits[:-1]:
        values[0] = (20.0, 20.0)
    assert ask.answers(logits, examples, [row], ())[0]["answer"] != ""  # one window sees the answer
    logits[-1][0] = (20.0, 20.0)
    assert ask.answers(logits, examples, [row], ())[0]["answer"] == ""


def test_squad_scores_of_worked_examples():
    ask = task(QuestionAnsweringTask(kind="question_answering", no_answer=True))
    rows = [
        QuestionRow("f", "1", "q", "c", (GoldAnswer("the Denver Broncos", 0), GoldAnswer("Broncos", 0))),
        QuestionRow("f", "2", "q", "c", (GoldAnswer("in July 1969", 0),)),
        QuestionRow("f", "3", "q", "c", ()),
        QuestionRow("f", "4", "q", "c", ()),
    ]
    answers = [{"answer": text} for text in ("Denver Broncos!", "July of 1969", "", "something")]
    scores = ask.score(answers, rows, (), 0.0)
    assert scores == {"exact_match": 0.5, "f1": pytest.approx((1 + 2 / 3 + 1 + 0) / 4)}


@pytest.fixture(scope="module")
def groups():
    with single_rank() as topology:
        yield topology


def bert_batch():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(6, 900, (3, 10), generator=generator)
    real = torch.arange(10) < torch.tensor([[10], [7], [4]])
    return {"tokens": tokens, "token_types": torch.zeros_like(tokens), "padding_mask": real}


def mean_loss(model, batch, **targets):
    with torch.no_grad():
        parts = model(**batch, **targets)
    count = model.target_counts({**batch, **targets})["task_loss"]
    return parts["logits"], float(parts["task_loss"]) / count


def test_the_losses_are_torchs_and_ignore_what_has_no_target(groups):
    batch = bert_batch()
    weights = [0.5, 2.0, 1.0]
    labels = torch.tensor([1, IGNORED_LABEL, 2])
    model = BertForSequence(BERT, 3, class_weights=weights, **LAYOUT).train()
    logits, loss = mean_loss(model, batch, labels=labels)
    wanted = torch.nn.CrossEntropyLoss(torch.tensor(weights))(logits[[0, 2]], labels[[0, 2]])
    assert loss == pytest.approx(float(wanted), rel=1e-6)

    several = torch.tensor([[1.0, 0, 1], [float("nan")] * 3, [0, 0, 1]])
    model = BertForSequence(BERT, 3, "multi_label", **LAYOUT).eval()
    logits, loss = mean_loss(model, batch, labels=several)
    wanted = torch.nn.BCEWithLogitsLoss()(logits[[0, 2]], several[[0, 2]])
    assert loss == pytest.approx(float(wanted), rel=1e-6)

    numbers = torch.tensor([1.5, float("nan"), -100.0])
    model = BertForSequence(BERT, 1, "regression", **LAYOUT).eval()
    logits, loss = mean_loss(model, batch, labels=numbers)
    wanted = torch.nn.MSELoss()(logits[[0, 2], 0], numbers[[0, 2]])
    assert loss == pytest.approx(float(wanted), rel=1e-6)

    tags = torch.full((3, 10), IGNORED_LABEL)
    tags[0, 1:4], tags[2, 2] = torch.tensor([0, 2, 1]), 1
    model = BertForTokens(BERT, 3, class_weights=weights, **LAYOUT).train()
    logits, loss = mean_loss(model, batch, tags=tags)
    known = tags != IGNORED_LABEL
    wanted = torch.nn.CrossEntropyLoss(torch.tensor(weights))(logits[known], tags[known])
    assert loss == pytest.approx(float(wanted), rel=1e-6)

    ends = torch.tensor([[2, 5], [0, 0], [IGNORED_LABEL] * 2])
    model = BertForSpans(BERT, **LAYOUT).eval()
    logits, loss = mean_loss(model, batch, labels=ends)
    logits[1, 7:] = -torch.inf
    wanted = [torch.nn.functional.cross_entropy(logits[:2, :, end], ends[:2, end]) for end in (0, 1)]
    assert loss == pytest.approx(float(sum(wanted) / 2), rel=1e-6)


def test_balanced_weights_are_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0, 0, 0, 1, 2, 2])
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert class_weights(np.bincount(labels)) == pytest.approx(wanted.tolist())
    assert class_weights(np.array([3, 0, 1]))[1] == 0.0


def test_scores_of_classification_regression_and_several_labels():
    classify = task(ClassificationTask(kind="classification"))
    rows = [TextRow("f", "t", label=label) for label in "aabb"]
    answers = [{"label": label, "score": 0.9} for label in "abbb"]
    scores = classify.score(answers, rows, ("a", "b"), 0.0)
    assert scores["accuracy"] == 0.75 and scores["f1_macro"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert scores["mcc"] == pytest.approx(1 / 3**0.5)  # (1 * 2 - 0 * 1) / sqrt(1 * 2 * 2 * 3) = 2 / sqrt(12)
    number = task(RegressionTask(kind="regression"))
    rows = [TextRow("f", "t", label=value) for value in (1.0, 2.0, 3.0)]
    scores = number.score([{"value": v} for v in (2.0, 4.0, 6.0)], rows, (), 0.0)
    assert scores["pearson"] == pytest.approx(1.0) and scores["mae"] == 2.0
    assert scores["rmse"] == pytest.approx((14 / 3) ** 0.5)
    assert number.score([{"value": 1.0}] * 3, rows, (), 0.0)["pearson"] == 0.0
    several = task(MultiLabelTask(kind="multi_label"))
    rows = [TextRow("f", "t", label=label) for label in (("a",), ("a", "b"))]
    (first, second) = several.answers([np.array([3.0, -3.0]), np.array([3.0, -0.1])], None, rows, ("a", "b"))
    assert first["labels"] == second["labels"] == ["a"] and second["scores"]["b"] == pytest.approx(
        0.475, 1e-3
    )
    scores = several.score([first, second], rows, ("a", "b"), 0.0)
    assert scores == {"f1_micro": pytest.approx(4 / 5), "f1_macro": 0.5, "exact_match": 0.5}


def test_the_loss_of_a_response_is_on_the_response_only(codec, tmp_path):
    sft = task(SftTask(kind="sft", template="Q: {prompt}\nA:"))
    path = tmp_path / "rows.jsonl"
    written = [("What is it?", " a value"), ("x", " the statement" * 30)]
    path.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in written))
    rows = sft.read(path)
    examples = sft.encode(rows, Encoder(codec, 40))
    prompt = codec.encode("Q: What is it?\nA:")
    response = [*codec.encode(" a value"), codec.eod_id]
    tokens, labels, mask = (examples.sequences[name][0] for name in ("tokens", "labels", "loss_mask"))
    assert tokens.tolist() == [*prompt, *response[:-1]]
    assert labels[mask == 1].tolist() == response and int(mask.sum()) == len(response)
    assert len(examples.sequences["tokens"][1]) == 40 and examples.truncated == 1


def test_a_packed_row_has_the_losses_of_its_parts(codec, groups):
    sft = task(SftTask(kind="sft"))
    texts = [("a b", " return"), ("the value of", " it is the statement"), ("x", " y")]
    rows = [PromptRow(f"f:{n}", *pair) for n, pair in enumerate(texts)]
    examples = sft.encode(rows, Encoder(codec, 40))
    whole = packed(examples, 40)
    assert len(whole) == 1 and sorted(np.unique(whole.sequences["document_ids"][0])) == [0, 1, 2]
    model = GPT(GPTModelConfig(kind="gpt", init_std=0.2, **SIZES), **LAYOUT).eval()

    def loss(data, numbers):
        batch = {name: torch.from_numpy(v) for name, v in data.micro_batch(numbers).items()}
        with torch.no_grad():
            return float(model(**batch)["lm_loss"]), model.target_counts(batch)["lm_loss"]

    parts = [loss(examples, [n]) for n in range(3)]
    together, count = loss(whole, [0])
    assert count == sum(c for _, c in parts)
    assert together == pytest.approx(sum(value for value, _ in parts), rel=1e-5)
    assert loss(examples, [0, 1, 2])[0] == pytest.approx(together, rel=1e-5)
