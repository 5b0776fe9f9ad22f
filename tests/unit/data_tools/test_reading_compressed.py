from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_tools.documents import ReadCounts
from data_tools.errors import DataError
from data_tools.reading import ReadOptions, chunk_digest, find_inputs, plan_chunks, read_chunk
from data_tools.reading.compressed import Unpacked
from tests.unit.data_tools.reading_support import ONE_CHUNK, PACKERS, read_all, texts_of

TEXTS = [f"document {i} " + "word " * random.Random(i).randint(0, 900) for i in range(80)]
CONTENT = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
COMPRESSED = sorted(set(PACKERS) - {""})

WRITERS = {  # as other programs write them: one stream, without sizes or checksums where there is a choice
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_content_size=False).compress,
}
ONE = {packed: write(CONTENT) for packed, write in WRITERS.items()}
SEVERAL = {packed: PACKERS[packed](CONTENT) for packed in COMPRESSED}


@pytest.mark.parametrize("packed", COMPRESSED)
def test_one_stream_and_several(tmp_path: Path, packed: str) -> None:
    for name, content in (("one", ONE[packed]), ("several", SEVERAL[packed])):
        path = tmp_path / f"{name}.jsonl{packed}"
        path.write_bytes(content)
        assert texts_of(read_all([path])[1]) == TEXTS
        assert texts_of(read_all([path], 1000)[1]) == TEXTS
    (tmp_path / f"empty.jsonl{packed}").write_bytes(WRITERS[packed](b""))
    assert read_all([tmp_path / f"empty.jsonl{packed}"])[1] == []


@pytest.mark.parametrize("packed", COMPRESSED)
@pytest.mark.parametrize("chunk_bytes", [3000, ONE_CHUNK])
@given(cut=st.floats(0, 1, exclude_max=True))
@example(cut=0.0)
@example(cut=0.9999999)
@settings(max_examples=25, deadline=None)
def test_a_truncated_file_never_ends_well(
    tmp_path_factory: pytest.TempPathFactory, packed: str, chunk_bytes: int, cut: float
) -> None:
    whole = ONE[packed]
    length = int(cut * len(whole))
    path = tmp_path_factory.mktemp("cut") / f"f.jsonl{packed}"
    path.write_bytes(whole[:length])
    with pytest.raises(
        DataError, match=rf"f\.jsonl{packed} (is truncated: it ends at byte {length}|.* so it is not)"
    ):
        read_all([path], chunk_bytes)


@pytest.mark.parametrize("packed", COMPRESSED)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_flipped_bit_is_found(
    tmp_path_factory: pytest.TempPathFactory, packed: str, data: st.DataObject
) -> None:
    whole = bytearray(SEVERAL[packed])
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("flip") / f"f.jsonl{packed}"
    path.write_bytes(whole)
    try:
        _, documents = read_all([path], data.draw(st.sampled_from([3000, ONE_CHUNK])))
    except DataError as error:
        assert f"f.jsonl{packed}" in str(error)
    else:  # a header bit without a meaning for the content, as the time in a gzip header
        assert texts_of(documents) == TEXTS


def test_garbage_after_the_end_is_an_error_and_zeros_are_padding(tmp_path: Path) -> None:
    for packed in (".gz", ".bz2", ".xz"):
        path = tmp_path / f"f.jsonl{packed}"
        path.write_bytes(WRITERS[packed](CONTENT) + bytes(70_000) + WRITERS[packed](CONTENT) + bytes(8))
        assert texts_of(read_all([path])[1]) == TEXTS * 2
    for packed in COMPRESSED:
        path = tmp_path / f"g.jsonl{packed}"
        path.write_bytes(WRITERS[packed](CONTENT) + b"garbage")
        with pytest.raises(DataError, match=rf"g\.jsonl{packed} is (damaged|truncated)"):
            read_all([path])


def test_what_came_before_the_damage_is_yielded_and_then_the_error(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl.gz"
    noise = [random.Random(i).randbytes(3000).hex() for i in range(100)]
    whole = gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in noise).encode())
    path.write_bytes(whole[: len(whole) // 2])
    options = ReadOptions()
    chunk = plan_chunks(find_inputs([str(path)], options), options)[0]
    reader, seen = read_chunk(chunk, options, ReadCounts()), []
    with pytest.raises(DataError, match="is truncated"):
        for item in reader:
            seen.append(item)
    assert 0 < len(seen) < 100 and texts_of(seen) == noise[: len(seen)]


def test_zstd_files_are_cut_at_frames(tmp_path: Path) -> None:
    compressor = zstandard.ZstdCompressor()
    frames = [compressor.compress(CONTENT[at : at + 2_000]) for at in range(0, len(CONTENT), 2_000)]
    path = tmp_path / "f.jsonl.zst"
    path.write_bytes(b"".join(frames))
    options = ReadOptions()
    files = find_inputs([str(path)], options)
    chunks = plan_chunks(files, options, 3 * len(frames[0]))
    assert len(chunks) > 10 and sum(chunk.cost for chunk in chunks) == path.stat().st_size
    assert [chunk.unpacked for chunk in chunks][-1][1] == len(CONTENT)
    assert len({chunk_digest(chunk) for chunk in chunks}) == len(chunks)
    chunk, size = chunks[5], 0
    for item in read_chunk(chunk, options, ReadCounts()):
        assert CONTENT[item.position :].startswith(json.dumps({"text": item.text}).encode())
        size += 1
    assert size

    sizeless = zstandard.ZstdCompressor(write_content_size=False)
    path.write_bytes(b"".join([frames[0], sizeless.compress(CONTENT[2_000:])]))
    assert len(plan_chunks(find_inputs([str(path)], options), options, 1000)) == 1
    assert texts_of(read_all([path], 1000)[1]) == TEXTS

    path.write_bytes(b"".join(frames)[:-3])
    with pytest.raises(
        DataError, match=r"f\.jsonl\.zst is truncated: it ends at byte \d+, inside the frame at"
    ):
        plan_chunks(find_inputs([str(path)], options), options, 1000)


def test_a_zstd_dictionary_is_asked_for(tmp_path: Path) -> None:
    samples = [json.dumps({"text": f"sample {i} with words"}).encode() for i in range(1000)]
    dictionary = zstandard.train_dictionary(2000, samples)
    path = tmp_path / "f.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor(dict_data=dictionary).compress(CONTENT))
    with pytest.raises(DataError, match=r"the frame at byte 0 needs a zstd dictionary"):
        read_all([path])


@pytest.mark.parametrize("packed", COMPRESSED)
def test_a_small_file_that_unpacks_to_much_is_read_in_pieces(packed: str) -> None:
    """Equal bytes pack a thousandfold and more: an unbounded decoder would hand megabytes over at once."""
    small = WRITERS[packed](bytes(20 << 20))
    stream = Unpacked(io.BytesIO(small), "f", packed.removeprefix("."))  # type: ignore[arg-type]
    sizes = [len(piece) for piece in iter(lambda: stream.read(1 << 30), b"")]
    assert len(small) < 30_000 and sum(sizes) == 20 << 20 and max(sizes) <= 1 << 20


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.jsonl", gzip.compress(CONTENT), "holds gz data: rename it to end in .gz"),
        ("f.jsonl", WRITERS[".zst"](CONTENT), "holds zst data: rename it to end in .zst"),
        ("f.txt", bz2.compress(CONTENT), "holds bz2 data: rename it to end in .bz2"),
        ("f.txt", lzma.compress(CONTENT), "holds xz data: rename it to end in .xz"),
        ("f.jsonl.gz", CONTENT, "begins with 7b 22 74 65, so it is not gz data as its name says"),
        ("f.jsonl.zst", gzip.compress(CONTENT), "so it is not zst data as its name says"),
        ("f.jsonl.xz", b"", "is empty, so it is not xz data as its name says"),
        ("f.parquet", CONTENT, "so it is not parquet data as its name says"),
        ("f.npy", b"", "is empty, so it is not npy data as its name says"),
        ("f.csv", b"PAR1abcd", "holds parquet data: rename it to end in .parquet"),
    ],
)
def test_a_wrong_extension_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_all([path], 100)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)


def test_a_text_may_begin_like_a_compressed_file(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_text("BZh is what bzip2 files begin with")
    assert texts_of(read_all([path])[1]) == [path.read_text()]
