from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.cli import main
from data_tools.errors import DataError
from data_tools.tokenizer import Tokenizer
from tests.unit.data_tools.support import make_texts, write_jsonl


def test_from_text_to_a_checked_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_jsonl(tmp_path / "d.jsonl", make_texts(100))
    model, corpus = tmp_path / "t.model", tmp_path / "corpus"
    tokenize = ["tokenizer", "--input", str(source), "--vocab-size", "400", "--out", str(model)]
    make = ["prepare", "--input", str(source), "--tokenizer", str(model), "--sentences"]
    make += ["--validation-fraction", "0.1", "--out", str(corpus)]
    for run in range(2):
        assert main(tokenize) == main(make) == 0
        out = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("  ")]
        assert len(out) == 2 and all(("already complete" in line) == (run == 1) for line in out)
    assert "400 ids" in out[0] and "train" in out[1] and "validation" in out[1]

    assert main(["stats", str(corpus), "--json"]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert stats["train"]["documents"] + stats["validation"]["documents"] == 100
    assert main(["stats", str(corpus)]) == 0
    assert f"{stats['train']['tokens']:,}" in capsys.readouterr().out

    assert main(["show", str(corpus), "--document", "5", "--count", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("--- document 5,") and "--- document 6," in shown and "[0] Document " in shown
    assert main(["show", str(corpus), "--pieces"]) == 0
    assert "|" in capsys.readouterr().out

    assert main(["verify", str(corpus)]) == 0
    shard = corpus / "train" / "train-00000.tar"
    raw = bytearray(shard.read_bytes())
    raw[2000] ^= 1
    shard.write_bytes(raw)
    capsys.readouterr()
    with pytest.raises(DataError, match="problem"):
        main(["verify", str(corpus)])
    assert "train-00000.tar is damaged" in capsys.readouterr().err


def test_show_counts_across_blocks(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = make_texts(30)
    source = write_jsonl(tmp_path / "d.jsonl", texts)
    corpus = str(tmp_path / "c")
    options = ["--validation-fraction", "0", "--block-bytes", "600", "--shard-bytes", "3000", "--out", corpus]
    main(["prepare", "--input", str(source), "--tokenizer", str(tokenizer.path), *options])
    capsys.readouterr()
    one_by_one = []
    for number in range(30):
        main(["show", corpus, "--document", str(number)])
        one_by_one.append(capsys.readouterr().out)
    main(["show", corpus, "--count", "99"])
    assert capsys.readouterr().out == "".join(one_by_one)
    bodies = sorted(out.split("\n", 2)[2].removesuffix("\n") for out in one_by_one)
    assert bodies == sorted(texts)
    for number in ("30", "-1"):
        with pytest.raises(DataError, match=r"--document must lie in \[0, 30\)"):
            main(["show", corpus, "--document", number])
    with pytest.raises(DataError, match="no shards at .*validation"):
        main(["show", corpus, "--split", "validation"])


def test_operating_system_errors_name_the_file(
    tmp_path: Path, tokenizer: Tokenizer, corpus_file: Path
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("x")
    common = ["prepare", "--input", str(corpus_file), "--tokenizer", str(tokenizer.path)]
    with pytest.raises(DataError, match=r"file.*(Not a directory|File exists)"):
        main([*common, "--out", str(blocker / "corpus")])
    with pytest.raises(DataError, match="no shards at"):
        main(["stats", str(tmp_path / "none")])


@pytest.mark.parametrize(
    "command", [[], ["python-docs"], ["tokenizer"], ["prepare"], ["show"], ["stats"], ["verify"]]
)
def test_help_has_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and " ".join(["headwater data", *command]) in text.split("example")[1]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom data_tools.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'sentencepiece', 'torch', 'tqdm', 'xxhash'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
