"""Where the commands write: refused before any work is done if it could not be published in the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.errors import DataError
from data_tools.publish import (
    publish_directory,
    require_absent,
    require_directory,
    require_file,
    require_new_file,
)
from finetune import audit, embed, evaluate, explain, export_adapter, export_hf, generate, import_hf, predict
from tests.unit.finetune.test_conversion import architecture, write_run

ABSENT = Path("no-checkpoint")
TO_A_FILE = {
    "predict": lambda out: predict.main(
        ["--checkpoint", str(ABSENT), "--input", "no.jsonl", "--out", str(out)]
    ),
    "embed": lambda out: embed.main(["--checkpoint", str(ABSENT), "--input", "no.jsonl", "--out", str(out)]),
    "generate": lambda out: generate.main(
        ["--checkpoint", str(ABSENT), "--prompts", "no.jsonl", "--out", str(out)]
    ),
    "audit": lambda out: audit.main(["--checkpoint", str(ABSENT), "--texts", "no.jsonl", "--out", str(out)]),
    "explain": lambda out: explain.main(["--checkpoint", str(ABSENT), "--text", "t", "--out", str(out)]),
}
TO_A_DIRECTORY = {
    "evaluate": lambda out: evaluate.main(["--checkpoint", str(ABSENT), "--out", str(out)]),
    "import": lambda out: import_hf.import_hf(ABSENT, out),
    "export --adapter": lambda out: export_adapter.export_adapter(ABSENT, out),
}


@pytest.mark.parametrize("command", TO_A_FILE)
def test_a_file_is_not_written_over_a_directory_or_below_a_file(command, tmp_path):
    if command == "explain":
        pytest.importorskip("captum")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty is a directory; --out names the file to write"):
        TO_A_FILE[command](tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file exists"):
        TO_A_FILE[command](tmp_path / "file")
    for below in ("file/a.jsonl", "file/more/a.jsonl"):
        with pytest.raises(DataError, match="file is no directory"):
            TO_A_FILE[command](tmp_path / below)


@pytest.mark.parametrize("command", TO_A_DIRECTORY)
def test_a_directory_is_not_written_over_or_below_a_file(command, tmp_path):
    (tmp_path / "file").touch()
    for out in ("file", "file/more"):
        with pytest.raises(DataError, match=r"file exists|file is no directory"):
            TO_A_DIRECTORY[command](tmp_path / out)


def test_an_export_below_a_file_is_one_line(tokenizer_model, codec, tmp_path):
    write_run(tmp_path / "gpt", architecture("gpt", codec.vocab_size), tokenizer_model)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is no directory"):
        export_hf.export(tmp_path / "gpt", tmp_path / "file" / "out")


def test_directories_may_be_empty_and_what_is_new_may_be_made(tmp_path):
    (tmp_path / "empty").mkdir()
    require_absent(tmp_path / "empty")
    with publish_directory(tmp_path / "empty") as directory:
        (directory / "a").touch()
    require_directory(tmp_path / "empty")
    for new in ("new", "new/more"):
        require_absent(tmp_path / new)
        require_new_file(tmp_path / new)
        require_file(tmp_path / new)
        require_directory(tmp_path / new)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for require in (require_absent, require_new_file, require_directory):
        with pytest.raises(DataError, match="dangling"):
            require(tmp_path / "dangling")


@pytest.mark.parametrize("require", [require_absent, require_new_file, require_file, require_directory])
def test_a_directory_without_the_right_to_write_is_told(require, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)  # the tests may run as root
    with pytest.raises(DataError, match=f"{tmp_path} cannot be written into; choose another --out"):
        require(tmp_path / "new" / "more")
    (tmp_path / "there").mkdir()
    require(tmp_path / "there" / "new")
