from __future__ import annotations

import json

from pretrain.data import skip
from pretrain.data.skip import SkipLog, SkippedSample


def log(directory, samples, rank=0, size=1):
    written = SkipLog(directory, "train", rank, size)
    for sample in samples:
        written.add(SkippedSample(sample, "it", "a.tar", sample % 3, 0, "hash"))
    written.hand_out(1 << 40)
    return written


def counts(found):
    return found["data/skipped_samples"], found["data/skipped_blocks"]


def test_counting_again_parses_only_what_is_new(tmp_path, monkeypatch):
    writer = log(tmp_path, range(1000))
    reader = SkipLog(tmp_path, "train", 0, 1)
    parsed = []
    loads = json.loads
    monkeypatch.setattr(skip.json, "loads", lambda line: parsed.append(1) or loads(line))
    assert counts(reader.counts(1000)) == (1000, 3) and len(parsed) == 1000
    assert counts(reader.counts(2)) == (2, 2) and len(parsed) == 1000
    writer.add(SkippedSample(5000, "it", "b.tar", 0, 0, "hash"))
    writer.hand_out(6000)
    assert counts(reader.counts(6000)) == (1001, 4) and len(parsed) == 1001
    log(tmp_path, [7], rank=1, size=2)
    assert counts(reader.counts(6000)) == (1001, 4) and len(parsed) == 1002


def test_a_line_in_the_making_is_counted_when_it_is_whole(tmp_path):
    reader = log(tmp_path, range(5))
    path = tmp_path / "train-00000.jsonl"
    line = path.read_text().splitlines()[0].replace('"sample": 0', '"sample": 9') + "\n"
    for part, expected in ((line[:20], 5), (line[20:], 6)):
        with path.open("a") as file:
            file.write(part)
        assert counts(reader.counts(100)) == (expected, 3)


def test_going_on_rewrites_only_what_changes_and_never_in_place(tmp_path):
    reader = log(tmp_path, range(10))
    other = SkipLog(tmp_path, "train", 1, 2)
    assert counts(other.counts(100)) == (10, 3)
    path = tmp_path / "train-00000.jsonl"
    before, inode = path.read_bytes(), path.stat().st_ino
    reader.go_on(10)
    assert path.stat().st_ino == inode
    with path.open("rb") as held:
        reader.go_on(4)
        assert held.read() == before and path.stat().st_ino != inode
    assert len(path.read_text().splitlines()) == 4
    assert counts(reader.counts(100)) == counts(other.counts(100)) == (4, 3)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
