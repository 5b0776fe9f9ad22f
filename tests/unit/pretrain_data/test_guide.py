"""The examples of docs/data-stream.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

GUIDE = Path(__file__).parents[3] / "docs" / "data-stream.md"


def test_the_stream_alone_as_the_guide_shows_it(corpora, tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "runs" / "data").mkdir(parents=True)
    (tmp_path / "runs" / "data" / "corpus").symlink_to(corpora["first"])
    monkeypatch.chdir(tmp_path)
    left: dict = {}
    exec(compile(example, str(GUIDE), "exec"), left)
    shapes = capsys.readouterr().out.splitlines()
    assert shapes == ["{'tokens': (4, 128), 'labels': (4, 128), 'loss_mask': (4, 128)}"] * 2
    assert left["state"]["consumed_samples"] == 16
    assert len(left["micro_batches"]) == 1 and left["stream"].consumed_samples == 32
