"""The tokenizer of a checkpoint: what is refused."""

from __future__ import annotations

import pytest

from finetune.text import open_text_codec
from pretrain.checkpoint import CheckpointError


@pytest.mark.parametrize("content", ['{"half', '{"version": "1.0"}', "[]"])
def test_a_damaged_tokenizer_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(
        CheckpointError, match=rf"{tmp_path}: its tokenizer cannot be read \(.* tokenizer.json"
    ):
        open_text_codec(tmp_path, 100)


def test_no_tokenizer_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="no tokenizer in this checkpoint"):
        open_text_codec(tmp_path, 100)
