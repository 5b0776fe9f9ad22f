"""Where documents begin in GPT samples, and what the model is told of it."""

from __future__ import annotations

import numpy as np
import pytest

from pretrain.data import open_stream, token_order
from pretrain.data.gpt_samples import GptSamples
from pretrain.data.objectives import DocumentRows, document_lm
from pretrain.data.philox import derive_key
from pretrain.data.reader import BlockReader
from pretrain.data.token_order import TokenOrder
from tests.unit.pretrain_data.support import EOD, marked_documents, marked_split, raw_stream, run_config

T, F = True, False


def rows_of(begins: list[list[bool]], within: list[list[bool]]) -> DocumentRows:
    tokens = np.arange(np.size(begins)).reshape(np.shape(begins)).astype(np.uint16)
    return DocumentRows(tokens, tokens + 1, np.array(begins), np.array(within))


def test_numbers_and_positions_of_documents():
    rows = rows_of([[T, F, F, T, F, T], [F, F, T, T, F, F]], [[T] * 6, [T, F, F, T, T, T]])
    batch = document_lm(rows, attention=True, positions=True, within=True)
    assert batch["document_ids"].tolist() == [[0, 0, 0, 1, 1, 2], [0, 0, 1, 2, 2, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 0, 0, 1, 2]]
    assert batch["loss_mask"].tolist() == [[1] * 6, [1, 0, 0, 1, 1, 1]]
    assert batch["tokens"].dtype == batch["labels"].dtype == np.int64
    assert np.array_equal(batch["labels"], batch["tokens"] + 1)


def test_only_what_was_asked_for_is_there():
    rows = rows_of([[T, F, T]], [[T, F, T]])
    batch = document_lm(rows, attention=False, positions=False, within=False)
    assert set(batch) == {"tokens", "labels", "loss_mask"} and batch["loss_mask"].all()
    assert "position_ids" not in document_lm(rows, attention=True, positions=False, within=False)


@pytest.mark.parametrize("group", [token_order.GROUP_TOKENS, 64])
def test_documents_begin_behind_eod_and_where_ranges_are_joined(tmp_path, monkeypatch, group):
    """Against the place of every (unique) token in what stock webdataset reads."""
    monkeypatch.setattr(token_order, "GROUP_TOKENS", group)
    manifest = marked_split(tmp_path / "train", marked_documents(np.random.default_rng(0), 50))
    stream = raw_stream(manifest.directory)
    place = np.full(1 << 16, -1)
    place[stream] = np.arange(len(stream))
    order = TokenOrder(manifest.tokens, 48, derive_key(1, "corpus"))
    spans = order.spans(*order.locate(np.arange(order.epoch_samples)))
    samples = GptSamples(BlockReader(manifest), 48, documents=True)
    rows = samples.read(spans)
    assert isinstance(rows, DocumentRows)
    plain = GptSamples(BlockReader(manifest), 48).read(spans)[0]
    assert np.array_equal(rows.tokens, plain[:, :-1]) and np.array_equal(rows.labels, plain[:, 1:])
    joined = 0
    for tokens, begins, within in zip(plain.tolist(), rows.begins, rows.within, strict=True):
        assert begins[0]
        for at in range(1, 49):
            before, token = tokens[at - 1], tokens[at]
            known = EOD not in (before, token)
            apart = before == EOD or (known and place[token] != place[before] + 1)
            if before != EOD and not known:
                continue  # an eod may begin a joined range; its place is not known
            assert within[at - 1] == (not apart)
            assert at == 48 or begins[at] == apart
            joined += apart and before != EOD
    assert (joined > 10) == (group == 64)
    blank = samples.blank()
    assert [array.shape for array in blank] == [array[:1].shape for array in rows]


def test_the_stream_gives_what_the_configuration_asks_for(tmp_path, corpora):
    def first(**data: object) -> dict[str, np.ndarray]:
        config = run_config("gpt", tmp_path, corpora)
        config = config.model_copy(update={"data": config.data.model_copy(update=data)})
        with open_stream(config, "train", 0, 1) as stream:
            return next(stream)[0]

    plain = first()
    assert set(plain) == {"tokens", "labels", "loss_mask"}
    documents = first(reset_attention_mask=True, reset_position_ids=True, eod_mask_loss=True)
    for name in ("tokens", "labels"):
        assert np.array_equal(plain[name], documents[name]), "the same samples in the same order"
    ends = plain["tokens"] == EOD
    assert ends.any()
    assert np.array_equal(documents["loss_mask"], np.where(ends, 0.0, 1.0))
    assert np.array_equal(documents["document_ids"], np.cumsum(ends, axis=1) - ends)
    behind = np.pad(ends[:, :-1], ((0, 0), (1, 0)))
    assert (documents["position_ids"][behind] == 0).all()
    assert (np.diff(documents["position_ids"], axis=1)[~behind[:, 1:]] == 1).all()
    only_loss = first(eod_mask_loss=True)
    assert set(only_loss) == set(plain) and np.array_equal(only_loss["loss_mask"], documents["loss_mask"])
