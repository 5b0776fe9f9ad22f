"""What `headwater explain` explains, by the kind of the model: an answer, and the outputs that made it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.evaluation import run_alone
from finetune.finetuned import Finetuned, open_finetuned
from finetune.generate import open_gpt
from finetune.rows import listed
from finetune.source import find_model, read_architecture
from finetune.tasks.conll import OUTSIDE
from finetune.tasks.squad import QuestionRow
from finetune.tasks.tagging import TaggedRow
from finetune.tasks.text_rows import TextRow
from finetune.text import TextCodec, encode_prompts
from pretrain.config import ConfigError
from pretrain.step import to_device

WINDOWS_AT_A_TIME = 8
CUT = "the text is longer than the model's sequences; what was cut off has no part in the answer"
OPTIONS = {
    "classification": ("pair", "label"),
    "multi_label": ("pair", "label"),
    "regression": ("pair",),
    "tagging": ("label", "word"),
    "question_answering": ("question",),
    "gpt": ("label",),
}
"""Kind of model -> what may be asked besides the text."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be explained.

    Attributes:
        text: To classify, to tag, to find an answer in, to go on with.
        pair: The second text of a task on pairs.
        question: About the text.
        label: Explain this label, tag or token; None takes the most probable one.
        word: Number of the word to explain the tag of, from 1; None takes the surest entity.
    """

    text: str
    pair: str | None = None
    question: str | None = None
    label: str | None = None
    word: int | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One output: what to call it, and its index in the logits of a text."""

    name: str
    index: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Subject:
    """An answer of a model.

    Attributes:
        model: Ours, whole.
        codec: Its tokenizer.
        batch: The arguments that it answers, one text.
        answer: As `headwater predict` gives it; of a GPT the next token.
        outputs: That the answer comes from.
        note: What there is to tell about the text; "" for nothing.
    """

    model: Any
    codec: TextCodec
    batch: dict[str, Tensor]
    answer: dict[str, Any]
    outputs: list[Output]
    note: str = ""


@contextmanager
def open_subject(checkpoint: Path, asked: Asked) -> Iterator[Subject]:
    """Ask a model, for as long as the block runs.

    Raises:
        CheckpointError: No usable checkpoint.
        ConfigError: A kind of model that is not explained, or that has not what is asked for.
    """
    directory = find_model(checkpoint)
    if read_architecture(directory).model.kind == "gpt":
        _require_options("gpt", directory, asked)
        with open_gpt(directory) as (model, codec):
            yield _next_token(model, codec, asked)
        return
    with open_finetuned(directory) as finetuned:
        task: Any = finetuned.task
        kind: str = task.section.kind
        _require_options(kind, directory, asked)
        yield _SUBJECTS.get(kind, _of_text)(finetuned, asked)


def _require_options(kind: str, checkpoint: Path, asked: Asked) -> None:
    if kind not in OPTIONS:
        raise ConfigError(f"{checkpoint} is a model for {kind}; explained are {', '.join(OPTIONS)}")
    flags = {"pair": "--text-pair", "question": "--question", "label": "--label", "word": "--word"}
    for name, flag in flags.items():
        value = getattr(asked, name)
        if value is not None and name not in OPTIONS[kind]:
            raise ConfigError(f"{flag} is not for {checkpoint}, a model for {kind}")
    for flag, text in (("--text", asked.text), ("--text-pair", asked.pair), ("--question", asked.question)):
        if text is not None and not text.strip():
            raise ConfigError(f"{flag}: must be text that is not blank")


def _of_text(finetuned: Finetuned, asked: Asked) -> Subject:
    """A label or a value of a text, or of two."""
    task: Any = finetuned.task
    wants_pair = bool(task.columns.text_pair)
    if wants_pair != (asked.pair is not None):
        raise ConfigError(
            f"{finetuned.checkpoint} answers pairs of texts: give --text-pair"
            if wants_pair
            else f"{finetuned.checkpoint} answers single texts: leave --text-pair out"
        )
    _require_label(finetuned, asked)
    row: TextRow[Any] = TextRow("--text", asked.text, asked.pair)
    answer, logits, examples = _answer(finetuned, row)
    target = int(logits[0].argmax()) if asked.label is None else finetuned.labels.index(asked.label)
    name = finetuned.labels[target] if finetuned.labels else "the value"
    note = CUT if examples.truncated else ""
    return _subject(finetuned, examples, 0, answer, [Output(name, (target,))], note)


def _of_word(finetuned: Finetuned, asked: Asked) -> Subject:
    """The tag of a word."""
    _require_label(finetuned, asked)
    words = tuple(asked.text.split())
    answer, logits, examples = _answer(finetuned, TaggedRow("--text", words))
    positions = examples.notes[0]
    if asked.word is None:
        sure = [score or 0.0 for score in answer["scores"]]
        number = max(range(len(words)), key=lambda n: (answer["tags"][n] != OUTSIDE, sure[n]))
    else:
        number = asked.word - 1
    if number >= len(words):
        raise ConfigError(f"--word {asked.word}: the text has {len(words)} words")
    position = int(positions[number])
    if position < 0:
        raise ConfigError(
            f"--word {number + 1}: {words[number]!r} is not read; the model's sequences end before"
        )
    best = int(logits[0][position].argmax())
    target = best if asked.label is None else finetuned.labels.index(asked.label)
    name = f"{finetuned.labels[target]} for {words[number]}"
    note = CUT if examples.truncated else ""
    return _subject(finetuned, examples, 0, answer, [Output(name, (position, target))], note)


def _of_question(finetuned: Finetuned, asked: Asked) -> Subject:
    """Both ends of the answer to a question, in the window of the text that it was found in."""
    if asked.question is None:
        raise ConfigError(f"{finetuned.checkpoint} answers questions: give --question")
    row = QuestionRow("--text", "1", asked.question, asked.text)
    answer, logits, examples = _answer(finetuned, row)
    best = next(one for one in answer["n_best"] if one["answer"] == answer["answer"])
    found = []  # score, window, both ends
    for number, (scores, spans) in enumerate(zip(logits, examples.notes, strict=True)):
        if not answer["answer"]:  # [CLS]; the least sure window has the word
            found.append((-float(scores[0].sum()), number, 0, 0))
            continue
        inside = spans[:, 0] >= 0
        touched = np.flatnonzero(inside & (spans[:, 1] > best["start"]) & (spans[:, 0] < best["end"]))
        covered = (
            len(touched) and spans[touched[0], 0] <= best["start"] and spans[touched[-1], 1] >= best["end"]
        )
        if covered:
            start, end = int(touched[0]), int(touched[-1])
            found.append((float(scores[start, 0] + scores[end, 1]), number, start, end))
    _, number, start, end = max(found)
    shown = answer["answer"] or "no answer"
    outputs = [Output(f"start of {shown}", (start, 0)), Output(f"end of {shown}", (end, 1))]
    note = (
        f"the text is read in {len(examples)} windows; explained is number {number + 1}, which has the answer"
    )
    return _subject(finetuned, examples, number, answer, outputs, note if len(examples) > 1 else "")


def _next_token(model: Any, codec: TextCodec, asked: Asked) -> Subject:
    """The token behind a prompt."""
    ids = encode_prompts(codec, [asked.text])[0]
    context = model.model_config.max_position_embeddings
    if len(ids) > context:
        raise ConfigError(f"--text: {len(ids)} tokens do not fit into the model's context of {context}")
    device = next(model.parameters()).device
    batch = {"tokens": torch.as_tensor(ids.astype(np.int64), device=device)[None]}
    with torch.no_grad():
        logits = model(**batch)["logits"][0, -1, : model.model_config.vocab_size].float()
    best = int(logits.argmax())
    answer = {"next": shown(codec, best), "score": float(logits.softmax(-1)[best])}
    target = best if asked.label is None else _token(codec, asked.label)
    return Subject(model, codec, batch, answer, [Output(shown(codec, target), (len(ids) - 1, target))])


def _token(codec: TextCodec, label: str) -> int:
    ids = codec.encode_batch([label])[0].tolist()
    if len(ids) != 1:
        raise ConfigError(
            f"--label {label!r}: must be one token of the model, not {listed([shown(codec, i) for i in ids])}"
        )
    return int(ids[0])


def _require_label(finetuned: Finetuned, asked: Asked) -> None:
    if asked.label is not None and asked.label not in finetuned.labels:
        raise ConfigError(f"--label {asked.label!r}: the model has {listed(finetuned.labels)}")


def _answer(finetuned: Finetuned, row: Any) -> tuple[dict[str, Any], list[Any], Any]:
    """The answer to a row, the logits of its examples, and these."""
    examples = finetuned.task.encode([row], finetuned.encoder)
    outputs = run_alone(finetuned.model, examples, WINDOWS_AT_A_TIME)
    logits = [outputs.logits[number] for number in range(len(examples))]
    (answer,) = finetuned.task.answers(logits, examples, [row], finetuned.labels)
    return dict(answer), logits, examples


def _subject(
    finetuned: Finetuned, examples: Any, number: int, answer: dict[str, Any], outputs: list[Output], note: str
) -> Subject:
    device = next(finetuned.model.parameters()).device
    batch = to_device(examples.micro_batch([number]), device)
    return Subject(finetuned.model, finetuned.encoder.codec, batch, answer, outputs, note)


def shown(codec: TextCodec, token: int) -> str:
    """A token as it is read on the page."""
    names = {codec.eod_id: "[END]", codec.cls_id: "[CLS]", codec.sep_id: "[SEP]", codec.pad_id: "[PAD]"}
    return names.get(token) or codec.decode([token]) or "·"


_SUBJECTS: dict[str, Callable[[Finetuned, Asked], Subject]] = {
    "tagging": _of_word,
    "question_answering": _of_question,
}
