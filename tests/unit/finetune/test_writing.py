"""Continuing texts: transformers' greedy text, whatever else is in the batch; stops, streams, files."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune import generate
from finetune.export_hf import export
from finetune.sampling import SamplingOptions
from finetune.single_rank import LAYOUT, single_rank
from finetune.writing import Writer, WritingOptions
from pretrain.config import ConfigError
from pretrain.config.model import GPTModelConfig
from pretrain.models.cache import KeyValueCache, cached_attention
from pretrain.models.gpt import GPT
from tests.unit.finetune.test_conversion import architecture, write_run

PROMPTS = ["The return statement", "a", "In the class body, the value of", "", "object"]


@pytest.fixture(scope="module")
def run(tokenizer_model, codec, tmp_path_factory):
    root = tmp_path_factory.mktemp("writing")
    write_run(root / "gpt", architecture("gpt", codec.vocab_size), tokenizer_model)
    return root / "gpt"


@pytest.fixture
def writer(run):
    with generate.open_writer(run) as opened:
        yield opened


def test_a_batch_writes_token_for_token_what_transformers_writes(run, tmp_path):
    export(run, tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    options = WritingOptions(max_new_tokens=24)
    with generate.open_writer(run) as writer:
        texts = writer.continue_texts(PROMPTS, options)
        for prompt, text in zip(PROMPTS, texts, strict=True):
            ids = torch.tensor([writer.tokens_of(prompt)])
            ones = torch.ones_like(ids)
            wanted = model.generate(input_ids=ids, attention_mask=ones, max_new_tokens=24, do_sample=False)
            assert text == tokenizer.decode(wanted[0, ids.shape[1] :], skip_special_tokens=True)
            assert text == writer.continue_texts([prompt], options)[0]
    assert len(set(texts)) > 2


STYLES = {
    "gpt2": {},
    "llama": {
        "position_embedding_type": "rope",
        "normalization": "RMSNorm",
        "swiglu": True,
        "num_query_groups": 1,
        "add_bias_linear": False,
    },
}
SIZES = {
    "vocab_size": 90,
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 64,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize("style", STYLES)
def test_the_cache_gives_the_logits_of_the_whole_text(style):
    config = GPTModelConfig(kind="gpt", init_std=0.2, **SIZES, **STYLES[style])
    with single_rank(), torch.no_grad():
        model = GPT(config, **LAYOUT).eval()
        tokens = torch.randint(90, (3, 12), generator=torch.Generator().manual_seed(1))
        whole = model(tokens)["logits"]
        pieces = []
        with cached_attention(model, 12):
            for first, last in ((0, 5), (5, 6), (6, 9), (9, 12)):
                places = torch.arange(first, last)
                mask = (torch.arange(last)[None, :] <= places[:, None]).expand(3, 1, -1, -1)
                new, positions = tokens[:, first:last], places.expand(3, -1)
                pieces.append(model(new, position_ids=positions, attention_mask=mask)["logits"])
        assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5)
        assert torch.equal(model(tokens)["logits"], whole)  # without the cache all is as before


def test_only_the_last_place_is_projected_for_the_next_token():
    config = GPTModelConfig(kind="gpt", init_std=0.2, **SIZES)
    with single_rank(), torch.no_grad():
        model = GPT(config, **LAYOUT).eval()
        tokens = torch.randint(90, (3, 12), generator=torch.Generator().manual_seed(1))
        places = torch.arange(12)
        mask = (places[None, :] <= places[:, None]).expand(3, 1, -1, -1)
        rows = []
        model.output_layer.register_forward_pre_hook(lambda _layer, inputs: rows.append(inputs[0].shape[0]))
        following = model.next_logits(tokens, places.expand(3, -1), mask)
        whole = model(tokens)["logits"]
    assert torch.allclose(following, whole[:, -1], atol=1e-5)
    assert rows == [1, 12]


def test_a_full_cache_is_an_error():
    cache = KeyValueCache(2)
    cache.extend(torch.zeros(2, 1, 1, 4), torch.zeros(2, 1, 1, 4))
    with pytest.raises(ValueError, match="3 tokens in a cache for 2"):
        cache.extend(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))


class Parrot(torch.nn.Module):
    """Writes one sentence over and over, whatever it reads."""

    def __init__(self, codec):
        super().__init__()
        self.words = codec.encode(" the value stops here caf\u00e9")
        self.start = len(codec.encode("x")) - 1
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.model_config = GPTModelConfig(kind="gpt", **SIZES | {"vocab_size": codec.vocab_size})

    def next_logits(self, tokens, position_ids, attention_mask):
        following = torch.tensor(self.words)[(position_ids[:, -1] - self.start) % len(self.words)]
        return torch.nn.functional.one_hot(following, 1024).float()


@pytest.mark.parametrize(
    ("stop", "wanted"),
    [
        ((), " the value stops here caf\u00e9"),
        ((" stops",), " the value"),
        (("lue", " va"), " the"),
        (("nothing",), " the value stops here caf\u00e9"),
    ],
)
def test_stop_strings_end_a_text_and_pieces_add_up(codec, stop, wanted):
    model, pieces = Parrot(codec), []
    options = WritingOptions(max_new_tokens=len(model.words), stop=stop)
    (text,) = Writer(model, codec).continue_texts(["x"], options, lambda _number, piece: pieces.append(piece))
    assert text == wanted == "".join(pieces)
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > (0 if stop[:1] == ("lue",) else 1)


def test_the_seed_decides_and_each_text_has_its_own(writer):
    options = WritingOptions(sampling=SamplingOptions(temperature=1.0), max_new_tokens=12, seed=4)
    texts = writer.continue_texts(["a", "a"], options)
    assert texts[0] != texts[1] and texts == writer.continue_texts(["a", "a"], options)


def test_a_text_may_end_where_the_context_does_whatever_else_is_in_the_batch(writer):
    long = (writer.tokens_of("In the class body, the value of") * 20)[:45]
    options = WritingOptions(max_new_tokens=40, cut_at_context=True)
    texts = writer.continue_tokens([long, writer.tokens_of("a")], options)
    assert texts[0] == writer.continue_tokens([long], WritingOptions(max_new_tokens=3))[0]
    assert texts[1] == writer.continue_texts(["a"], WritingOptions(max_new_tokens=40))[0]
    with pytest.raises(ConfigError, match="the prompt has 45 tokens; 4 new ones do not fit"):
        writer.continue_tokens([long], WritingOptions(max_new_tokens=4))


def test_texts_of_a_file_depend_neither_on_the_batch_size_nor_come_half(run, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps({"prompt": "the value"}) + "\n")
    words = ["--checkpoint", str(run), "--prompts", str(prompts), "--temperature", "1", "--seed", "3"]
    for size in "12":
        out = ["--out", str(tmp_path / size), "--batch-size", size, "--max-new-tokens", "9"]
        assert generate.main([*words, *out]) == 0
    assert (tmp_path / "1").read_text() == (tmp_path / "2").read_text()
    prompts.write_text(prompts.read_text() + json.dumps({"prompt": "the value of " * 20}) + "\n")
    with pytest.raises(ConfigError, match="prompts.jsonl:3: the prompt has"):
        generate.main([*words, "--out", str(tmp_path / "3"), "--max-new-tokens", "9"])
    assert not (tmp_path / "3").exists()


def test_prompts_of_a_file_and_the_terminal(run, tmp_path, capsys):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": p, "id": n}) + "\n" for n, p in enumerate(PROMPTS) if p))
    words = ["--checkpoint", str(run), "--max-new-tokens", "8"]
    assert generate.main([*words, "--prompts", str(prompts), "--out", str(out), "--batch-size", "3"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [0, 1, 2, 4]
    with generate.open_writer(run) as writer:
        wanted = writer.continue_texts([row["prompt"] for row in rows], WritingOptions(max_new_tokens=8))
    assert [row["text"] for row in rows] == wanted
    capsys.readouterr()
    assert generate.main([*words, "--prompt", PROMPTS[0]]) == 0
    assert capsys.readouterr().out == PROMPTS[0] + wanted[0] + "\n"
    with pytest.raises(SystemExit):
        generate.main([*words, "--prompts", str(prompts)])


def test_a_prompt_without_room_is_not_written(run, capsys):
    with pytest.raises(ConfigError, match="the prompt has"):
        generate.main(["--checkpoint", str(run), "--prompt", "Return", "--max-new-tokens", "500"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--stop", "", "an empty text would end every text at once"),
        ("--seed", str(2**64), f"{2**64} is not in {-(2**63)} to {2**63 - 1}"),
        ("--seed", "abc", "'abc' is no whole number"),
        ("--seed", str(2**63), "is not in"),
        ("--seed", str(-(2**63) - 1), "is not in"),
    ],
)
def test_options_that_cannot_be_meant(option, value, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        generate.main(["--checkpoint", "none", "--prompt", "a", f"{option}={value}"])
    assert stopped.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.parametrize("seed", [-(2**63), -1, 2**63 - 1])
def test_the_first_and_the_last_seed(run, tmp_path, seed):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text((json.dumps({"prompt": "a"}) + "\n") * 3)
    words = ["--checkpoint", str(run), "--prompts", str(prompts), "--max-new-tokens", "2"]
    assert generate.main([*words, "--out", str(tmp_path / "out"), "--temperature=1", f"--seed={seed}"]) == 0
