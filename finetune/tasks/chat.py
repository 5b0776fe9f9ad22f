"""Conversations as text, written by a chat template: Jinja, rendered by transformers' own code.

`eos_token` in a template becomes a mark in the text, which stands for the one token that ends a text; the
exported tokenizer has the token itself there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from data_tools.errors import DataError
from finetune.rows import Record, short
from finetune.text import END_OF_TEXT
from pretrain.config import ConfigError

Messages = Sequence[Mapping[str, str]]
RESPONSE_ROLE = "assistant"

ERRORS_IN_TEMPLATES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What Python's own operators and methods raise in a template; Jinja passes it on as it is."""


def messages_of(record: Record, column: str) -> Messages:
    """The conversation of a row.

    Raises:
        DataError: It is none, with file and line.
    """
    messages = record.get(column, "data.messages")
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{record.where}: {column!r} must be a list of messages, not {short(messages)}")
    for number, message in enumerate(messages):
        texts = isinstance(message, dict) and all(
            isinstance(message.get(key), str) for key in ("role", "content")
        )
        if not texts or END_OF_TEXT in message["content"]:
            raise DataError(
                f'{record.where}: message {number} must be {{"role": text, "content": text}}, '
                f"not {short(message)}"
            )
    return messages


def prompt_of(template: str, messages: Messages, where: str) -> str:
    """What the model reads before it answers the last message.

    Raises:
        ConfigError: The template cannot write this.
    """
    return _rendered(template, messages, where, add_generation_prompt=True)


def turns(template: str, messages: Messages, where: str) -> list[tuple[str, str]]:
    """Prompt and response of each message of the assistant.

    A response ends where the template ends the text, or with the message's last character that it writes.

    Raises:
        DataError: No message of the assistant.
        ConfigError: The template writes a beginning of a conversation otherwise than the whole.
    """
    found = []
    for number, message in enumerate(messages):
        if message["role"] != RESPONSE_ROLE:
            continue
        prompt = prompt_of(template, messages[:number], where)
        whole = _rendered(template, messages[: number + 1], where, add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise ConfigError(
                f"task.chat_template: what it writes with add_generation_prompt before message {number} of "
                f"{where} is not the beginning of what it writes with that message, so that a model cannot "
                "learn to go on from there"
            )
        found.append((prompt, whole[len(prompt) :].split(END_OF_TEXT)[0]))
    if not found:
        raise DataError(f"{where}: no message of the role {RESPONSE_ROLE!r} to learn from")
    return found


def _rendered(template: str, messages: Messages, where: str, add_generation_prompt: bool) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    if "bos_token" in template:
        raise ConfigError("task.chat_template: leave bos_token out; a prompt here begins without it")
    plain: list[dict[str, Any]] = [dict(message) for message in messages]
    try:
        texts, _ = render_jinja_template(
            conversations=[plain],
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            eos_token=END_OF_TEXT,
        )
    except TemplateError as error:
        raise ConfigError(f"task.chat_template: cannot write the conversation at {where}: {error}") from error
    except ERRORS_IN_TEMPLATES as error:
        raise ConfigError(
            f"task.chat_template: cannot write the conversation at {where}: {type(error).__name__}: {error}"
        ) from error
    text: str = texts[0]
    return text
