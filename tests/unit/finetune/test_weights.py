"""Converted weights compute what transformers computes: logits and losses, in both directions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers

from finetune.compare import largest_difference
from finetune.hf_config import model_section
from finetune.kinds import Architecture, build, kind_of
from finetune.single_rank import single_rank
from finetune.weights import from_hf, merge_qkv, split_qkv, to_hf
from pretrain.checkpoint import load_parameters
from pretrain.config import ConfigError
from pretrain.config.model import BertModelConfig, GPTModelConfig

SIZES = {
    "vocab_size": 300,  # padded to 384
    "num_layers": 2,
    "hidden_size": 48,
    "ffn_hidden_size": 80,
    "num_attention_heads": 3,
    "max_position_embeddings": 40,
    "init_std": 0.3,  # far from zero, so that a wrong order shows
}
GPT = Architecture(GPTModelConfig(kind="gpt", **SIZES))
BERT = Architecture(BertModelConfig(kind="bert", **SIZES))
CLASSIFIER = dataclasses.replace(BERT, labels=("bad", "good", "other"))
LLAMA_STYLE = {
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "swiglu": True,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "add_bias_linear": False,
    "untie_embeddings_and_output_weights": True,
    "hidden_dropout": 0.0,
}


def changed(of, **changes):
    return dataclasses.replace(of, model=type(of.model)(**of.model.model_dump() | changes))


LLAMA = changed(GPT, **LLAMA_STYLE)
ARCHITECTURES = {
    "gpt": GPT,
    "gpt-untied": changed(GPT, untie_embeddings_and_output_weights=True),
    "llama": LLAMA,
    "llama-tied-biased-ungrouped": changed(
        LLAMA, untie_embeddings_and_output_weights=False, add_bias_linear=True, num_query_groups=None
    ),
    "llama-3.1": changed(LLAMA, rotary_base=500000.0, rope_scaling_factor=8.0, num_query_groups=1),
    "bert": BERT,
    "bert-mlm": changed(BERT, add_binary_head=False),
    "megatron-bert": changed(BERT, norm_position="pre"),
    "megatron-bert-mlm": changed(BERT, norm_position="pre", add_binary_head=False),
    "classifier": CLASSIFIER,
    "megatron-bert-classifier": changed(CLASSIFIER, norm_position="pre"),
}
ALL = pytest.mark.parametrize("of", ARCHITECTURES.values(), ids=ARCHITECTURES)
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def topology():
    with single_rank() as topology:
        yield topology


@torch.no_grad()
def randomized(model):
    """Every parameter random, also biases and norms, which start at 0 and 1."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def our_model(of):
    return randomized(build(of))


def their_model(of):
    kind = kind_of(of)
    return randomized(getattr(transformers, kind.hf_class)(kind.hf_config(of)))


def parameters_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def converted_to_theirs(of, ours):
    theirs = their_model(of)
    report = theirs.load_state_dict(to_hf(kind_of(of).links(of.model), parameters_of(ours)), strict=False)
    assert not report.unexpected_keys
    tied = {"lm_head.weight", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert set(report.missing_keys) <= tied
    return theirs


def converted_to_ours(of, theirs, topology):
    ours = build(of)
    load_parameters(ours, from_hf(kind_of(of).links(of.model), theirs.state_dict()), topology)
    return ours.eval()


@ALL
def test_ours_to_theirs_gives_the_same_logits(of, topology):
    ours = our_model(of)
    assert largest_difference(ours, their_model(of), of) > 0.1  # the comparison can fail
    assert largest_difference(ours, converted_to_theirs(of, ours), of) < TOLERANCE


@ALL
def test_theirs_to_ours_gives_the_same_logits(of, topology):
    theirs = their_model(of)
    assert largest_difference(converted_to_ours(of, theirs, topology), theirs, of) < TOLERANCE


@ALL
def test_there_and_back_is_the_identity_up_to_vocabulary_padding(of, topology):
    ours = parameters_of(our_model(of))
    links = kind_of(of).links(of.model)
    back = from_hf(links, to_hf(links, ours))
    assert back.keys() == ours.keys()
    for name, tensor in ours.items():
        if tensor.shape[0] == 384:
            assert not back[name][300:].any()
            tensor, back[name] = tensor[:300], back[name][:300]
        assert torch.equal(back[name], tensor), name


@torch.no_grad()
def test_the_gpt_loss_is_theirs(topology):
    ours = our_model(GPT)
    theirs = converted_to_theirs(GPT, ours)
    tokens = torch.randint(300, (3, 21))
    loss = ours(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())["lm_loss"] / (3 * 20)
    assert loss.item() == pytest.approx(theirs(input_ids=tokens, labels=tokens).loss.item(), abs=TOLERANCE)


@torch.no_grad()
def test_the_bert_losses_are_theirs(topology):
    ours = our_model(BERT)
    theirs = converted_to_theirs(BERT, ours)
    tokens, types = torch.randint(300, (3, 20)), (torch.arange(20) > 9).long().expand(3, 20)
    real = torch.arange(20) < torch.tensor([[20], [15], [7]])
    positions, answers, follows = (
        torch.tensor([2, 25, 41]),
        torch.tensor([7, 299, 0]),
        torch.tensor([0, 1, 1]),
    )
    labels = torch.full((60,), -100)
    labels[positions] = answers
    got = ours(tokens, types, real, positions, answers, follows)
    wanted = theirs(
        input_ids=tokens,
        token_type_ids=types,
        attention_mask=real.long(),
        labels=labels.view(3, 20),
        next_sentence_label=follows,
    )
    total = got["mlm_loss"] / 3 + got["nsp_loss"] / 3
    assert total.item() == pytest.approx(wanted.loss.item(), abs=TOLERANCE)


@torch.no_grad()
def test_the_classification_loss_is_theirs(topology):
    ours = our_model(CLASSIFIER)
    theirs = converted_to_theirs(CLASSIFIER, ours)
    tokens, real = torch.randint(300, (4, 20)), torch.ones(4, 20, dtype=torch.bool)
    labels = torch.tensor([0, 2, 1, 2])
    got = ours(tokens, torch.zeros_like(tokens), real, labels)
    wanted = theirs(input_ids=tokens, attention_mask=real.long(), labels=labels)
    assert got["task_loss"].item() / 4 == pytest.approx(wanted.loss.item(), abs=TOLERANCE)


@ALL
def test_the_configuration_survives_the_round_trip(of):
    config = kind_of(of).hf_config(of)
    config.architectures = [kind_of(of).hf_class]
    assert model_section(config, "test") == of.model


def test_heads_are_interleaved():
    model = BERT.model.model_copy(update={"hidden_size": 4, "num_attention_heads": 2})
    fused = torch.arange(12)  # 2 heads of size 2: q0 q0 k0 k0 v0 v0 q1 q1 k1 k1 v1 v1
    query, key, value = split_qkv(fused, model)
    assert (
        query.tolist() == [0, 1, 6, 7] and key.tolist() == [2, 3, 8, 9] and value.tolist() == [4, 5, 10, 11]
    )
    assert torch.equal(merge_qkv((query, key, value), model), fused)


def test_query_groups_stand_with_their_key_and_value():
    model = LLAMA.model.model_copy(update={"hidden_size": 4})
    fused = torch.arange(8)  # 4 heads of size 1 in 2 groups: q0 q1 k0 v0 q2 q3 k1 v1
    query, key, value = split_qkv(fused, model)
    assert query.tolist() == [0, 1, 4, 5] and key.tolist() == [2, 6] and value.tolist() == [3, 7]
    assert torch.equal(merge_qkv((query, key, value), model), fused)


def test_a_gpt_between_the_styles_is_refused_with_the_reasons():
    with pytest.raises(ConfigError) as error:
        kind_of(changed(GPT, normalization="RMSNorm", add_bias_linear=False))
    assert len(error.value.problems) == 2 and "normalization: RMSNorm" in error.value.problems[0]
    with pytest.raises(ConfigError, match="swiglu: False has no counterpart in transformers' llama"):
        kind_of(changed(LLAMA, swiglu=False))


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_a_checkpoint_of_another_model_is_refused(change, topology):
    parameters = parameters_of(our_model(GPT))
    if change == "missing":
        del parameters["decoder.final_layernorm.bias"]
    else:
        parameters["decoder.layers.2.mlp.linear_fc1.bias"] = torch.zeros(1)
    with pytest.raises(ConfigError, match="final_layernorm.bias|layers.2"):
        to_hf(kind_of(GPT).links(GPT.model), parameters)


def test_unsupported_variants_are_all_named():
    config = transformers.GPT2Config(activation_function="relu", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ConfigError) as error:
        model_section(config, "test")
    assert len(error.value.problems) == 2
    llama = transformers.LlamaConfig(hidden_act="gelu", head_dim=3, mlp_bias=True)
    with pytest.raises(ConfigError) as error:
        model_section(llama, "test")
    assert len(error.value.problems) == 3
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(ConfigError, match="rope_parameters: .*yarn.* is not supported"):
        model_section(transformers.LlamaConfig(rope_parameters=yarn), "test")
    with pytest.raises(ConfigError, match="'t5' cannot be imported, only gpt2, llama, bert, megatron-bert"):
        model_section(transformers.T5Config(), "test")
