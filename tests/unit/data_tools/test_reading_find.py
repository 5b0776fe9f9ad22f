from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_tools.errors import DataError
from data_tools.reading import InputFile, ReadOptions, find_inputs, gives_tokens, plan_chunks


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def found(*arguments: Path | str, **options: object) -> list[str]:
    files = find_inputs([str(argument) for argument in arguments], ReadOptions(**options))  # type: ignore[arg-type]
    return [file.url for file in files]


def test_a_directory_gives_every_known_file_at_any_depth(tmp_path: Path) -> None:
    names = [
        "A.JSONL",
        "a/b/c.txt.gz",
        "a/d.parquet",
        "b.csv",
        "e.warc.wet.gz",
        "g.json.zst",
        "h.tsv.xz",
    ]
    make(tmp_path, *names)
    make(
        tmp_path,
        "README.md",
        ".hidden.jsonl",
        ".git/x.txt",
        "x.jsonl.partial",
        "noextension",
        "y.zip",
        ".jsonl",
    )
    assert found(tmp_path) == [str(tmp_path / name) for name in names]
    files = find_inputs([str(tmp_path)], ReadOptions())
    assert [(file.format, file.compression) for file in files] == [
        ("jsonl", ""),
        ("text", "gz"),
        ("parquet", ""),
        ("csv", ""),
        ("warc", "gz"),
        ("jsonl", "zst"),
        ("tsv", "xz"),
    ]
    first, status = files[0], (tmp_path / "A.JSONL").stat()
    assert first == InputFile(
        str(tmp_path / "A.JSONL"),
        status.st_size,
        str(status.st_mtime_ns),
        str(tmp_path),
        "jsonl",
        name="A.JSONL",
    )
    assert found(tmp_path, format="csv") == [str(tmp_path / name) for name in ("b.csv", "h.tsv.xz")]
    assert find_inputs([str(tmp_path)], ReadOptions(format="csv"))[1].format == "tsv"


def test_files_and_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "b.jsonl", "a.jsonl", "sub/c.jsonl", "sub/deep/d.rst", "sub/.e.jsonl", "[x].jsonl", "note")
    a, b, c = (str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "sub/c.jsonl"))
    assert found(b, a) == found(a, b) == [a, b]
    assert found(f"{tmp_path}/?.jsonl") == [a, b]
    assert found(f"{tmp_path}/**/[a-c].jsonl") == [a, b, c]
    assert found(f"{tmp_path}/[x].jsonl") == [str(tmp_path / "[x].jsonl")]
    assert found(f"{tmp_path}/**/*.rst", f"{tmp_path}/note", format="text") == [
        str(tmp_path / "note"),
        str(tmp_path / "sub/deep/d.rst"),
    ]
    monkeypatch.chdir(tmp_path)
    file = find_inputs(["sub/../a.jsonl"], ReadOptions())[0]
    assert (file.url, file.argument) == (a, "sub/../a.jsonl")


def test_names_do_not_depend_on_the_place_or_on_how_files_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for root in ("here/raw", "elsewhere/deep/[copy]"):
        make(tmp_path / root, "web/a.jsonl", "web/b/c.jsonl", "books.jsonl")
    monkeypatch.chdir(tmp_path / "here")
    copy = tmp_path / "elsewhere/deep/[copy]"
    for arguments in (
        ["raw"],
        ["raw/books.jsonl", str(tmp_path / "here/raw/web")],
        ["../here/raw/web/b/c.jsonl", "raw/web/a.jsonl", "raw/books.jsonl"],
        ["raw/**/*.jsonl"],
        [str(copy / "web"), str(copy / "books.jsonl")],
    ):
        files = find_inputs(arguments, ReadOptions())
        assert [file.name for file in files] == ["books.jsonl", "web/a.jsonl", "web/b/c.jsonl"]
        assert [file.group for file in files] == ["books", "web", "web/b"]


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("books.jsonl", "books"),
        ("part-00017.jsonl.zst", "part"),
        ("c4-train.00001-of-01024.json.gz", "c4-train"),
        ("000_00001.parquet", "000_00001.parquet"),
        ("en/000_00001.parquet", "en"),
        ("https://host/wiki/part-1.jsonl", "https://host/wiki"),
    ],
)
def test_documents_without_a_source_get_the_group_of_their_file(name: str, group: str) -> None:
    assert InputFile("", 0, "", "", "jsonl", name=name).group == group


def test_what_cannot_be_found_is_named(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "sub/note", "x.parquet.gz")
    for argument, message in (
        ("none.jsonl", r"no input file .*none\.jsonl: No such file"),
        ("*.csv", r"no input files under .*\*\.csv"),
        (
            "sub",
            r"no input files under .*sub; of a directory those are read that end in \.jsonl \.ndjson .*\.gz",
        ),
        ("sub/note", r"sub/note: the name tells no format, \.jsonl .* do: give it with --format"),
        ("sub/*", r"sub/note: the name tells no format"),
        ("x.parquet.gz", r"x\.parquet\.gz: parquet inside \.gz cannot be read: decompress it first"),
    ):
        with pytest.raises(DataError, match=message):
            found(tmp_path / argument)
    with pytest.raises(DataError, match=r"end in \.txt \.text \("):
        found(tmp_path / "sub", format="text")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match=r"pipe\.txt is not a regular file"):
        found(tmp_path / "pipe.txt")


def test_a_file_is_read_once(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "sub/b.jsonl", "other/c.txt")
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    (tmp_path / "other" / "linked").symlink_to(tmp_path / "sub")
    with pytest.raises(
        DataError, match=rf"named twice: by {tmp_path}/a\.jsonl and by {tmp_path}/sub/\.\./a\.jsonl"
    ):
        found(tmp_path / "a.jsonl", f"{tmp_path}/sub/../a.jsonl")
    with pytest.raises(DataError, match=rf"a\.jsonl is named twice: by {tmp_path} and by {tmp_path}"):
        found(tmp_path)
    (tmp_path / "link.jsonl").unlink()
    with pytest.raises(DataError, match=r"b\.jsonl is named twice"):
        found(tmp_path)
    assert found(tmp_path / "other") == [
        str(tmp_path / "other" / name) for name in ("c.txt", "linked/b.jsonl")
    ]
    (tmp_path / "sub" / "up").symlink_to(tmp_path / "sub")
    with pytest.raises(DataError, match=r"sub/up is a symbolic link to a directory that it is in"):
        found(tmp_path / "sub")


def test_a_token_key_is_for_formats_that_have_one(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "b.npy", "c.parquet", "d.csv")
    assert len(found(*(tmp_path / name for name in ("a.jsonl", "b.npy", "c.parquet")), token_key="ids")) == 3
    with pytest.raises(DataError, match=r"d\.csv: a token key is for jsonl and parquet, this is csv"):
        found(tmp_path, token_key="ids")


def test_arrays_and_text_do_not_mix(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "b.npy", "c.npy", "d.txt")

    def tokens(*names: str, **options: object) -> bool:
        chosen = ReadOptions(**options)  # type: ignore[arg-type]
        return gives_tokens(find_inputs([str(tmp_path / name) for name in names], chosen), chosen)

    assert tokens("b.npy", "c.npy") and tokens("", format="npy")
    assert tokens("a.jsonl", "c.npy", token_key="ids") and tokens("a.jsonl", token_key="ids")
    assert not tokens("a.jsonl", "d.txt") and not tokens("", format="text")
    assert not gives_tokens([], ReadOptions()) and not gives_tokens([], ReadOptions(token_key="ids"))
    with pytest.raises(DataError, match=r"b\.npy holds token ids, .*a\.jsonl text: .*--format.*--token-key"):
        found(tmp_path)
    with pytest.raises(DataError, match=r"b\.npy holds token ids, .*d\.txt text"):
        found(tmp_path / "d.txt", tmp_path / "b.npy")
    (tmp_path / "b.npy").write_bytes(bytes(25))
    files = find_inputs([str(tmp_path / "b.npy")], ReadOptions())
    cut = [(chunk.start, chunk.stop) for chunk in plan_chunks(files, ReadOptions(), 10)]
    assert cut == [(0, 10), (10, 20), (20, 25)]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.jsonl")
    make(tmp_path, "a.jsonl")
    for name in (bad, f"{bad}.ignored"):
        Path(name).touch()
    for argument in (
        str(tmp_path),
        f"{tmp_path}/*.jsonl",
        bad,
        f"{tmp_path}/\udcff/../a.jsonl",
        "s3://x/\udcff",
    ):
        with pytest.raises(
            DataError, match=r"name of the input '.*\\udcff.*' is not UTF-8: rename it"
        ) as caught:
            found(argument)
        str(caught.value).encode()
    os.remove(bad)
    assert found(tmp_path) == [str(tmp_path / "a.jsonl")]


def test_an_empty_argument_is_not_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a.jsonl")
    monkeypatch.chdir(tmp_path)
    assert found(".") == [str(tmp_path / "a.jsonl")]
    with pytest.raises(DataError, match="an --input is empty"):
        found(".", "")


def test_a_glob_below_a_directory_that_looks_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "m[1]/a.jsonl", "m[1]/sub/b.jsonl", "m[1]/.hidden/c.jsonl", "m1/wrong.jsonl")
    monkeypatch.chdir(tmp_path / "m[1]")
    a, b = (str(tmp_path / "m[1]" / name) for name in ("a.jsonl", "sub/b.jsonl"))
    assert found("*.jsonl") == found("./?.jsonl") == found("sub/../*.jsonl") == [a]
    assert found("**/*.jsonl") == [a, b]


def test_corpora_below_a_directory_are_no_input(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "own/merge.json", "own/sub/x.jsonl")
    before = found(tmp_path)
    assert len(before) == 3, "a user's own merge.json"
    for corpus, record in (("out", "prepare.json"), ("deep/out", "merge.json")):
        make(tmp_path, f"{corpus}/{record}", f"{corpus}/quarantine.jsonl", f"{corpus}/train/manifest.json")
        make(tmp_path, f"{corpus}/train/train-00000.parquet")
    make(tmp_path, ".out.work/read.jsonl")
    assert found(tmp_path) == before


def test_chunks(tmp_path: Path) -> None:
    names = [
        "a.jsonl",
        "b.txt",
        "c.csv",
        "d.jsonl.gz",
        "e.parquet",
        "f.warc",
        "h.jsonl",
        "i.jsonl.gz",
    ]
    for name in names[:-2]:
        (tmp_path / name).write_bytes(bytes(25))
    make(tmp_path)
    (tmp_path / "h.jsonl").touch()
    (tmp_path / "i.jsonl.gz").touch()
    options = ReadOptions(text_unit="line")
    files = find_inputs([str(tmp_path)], options)

    def ranges(options: ReadOptions) -> dict[str, list[tuple[int, int]]]:
        cut: dict[str, list[tuple[int, int]]] = {}
        for chunk in plan_chunks(files, options, 10):
            assert files[chunk.file_index] is chunk.file and chunk.cost == chunk.stop - chunk.start
            cut.setdefault(os.path.basename(chunk.file.url), []).append((chunk.start, chunk.stop))
        return cut

    whole, parts = [(0, 25)], [(0, 10), (10, 20), (20, 25)]
    assert ranges(options) == {
        "a.jsonl": parts,
        "b.txt": parts,
        "c.csv": whole,
        "d.jsonl.gz": whole,
        "e.parquet": parts,
        "f.warc": whole,
        "i.jsonl.gz": [(0, 0)],
    }
    assert ranges(ReadOptions(text_unit="file"))["b.txt"] == whole
