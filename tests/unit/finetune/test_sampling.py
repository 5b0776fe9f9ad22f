"""Choosing tokens, against plain definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.sampling import SamplingOptions, choose, keep_top_k, keep_top_p, penalized

GREEDY = SamplingOptions()
LOGITS = torch.log(torch.tensor([0.1, 0.4, 0.2, 0.3]))


def kept(logits):
    return torch.nonzero(logits > -torch.inf).flatten().tolist()


def test_top_k_keeps_the_largest():
    assert kept(keep_top_k(LOGITS, 2)) == [1, 3]
    assert torch.equal(keep_top_k(LOGITS, 0), LOGITS) and torch.equal(keep_top_k(LOGITS, 9), LOGITS)


@pytest.mark.parametrize(
    ("p", "wanted"), [(0.01, [1]), (0.39, [1]), (0.5, [1, 3]), (0.75, [1, 2, 3]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(p, wanted):
    assert kept(keep_top_p(LOGITS, p)) == wanted


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-9, 9), min_size=1, max_size=20), st.floats(0.01, 0.99))
def test_top_p_is_minimal_and_sufficient(values, p):
    logits = torch.tensor(values, dtype=torch.float64)
    probabilities = logits.softmax(-1)
    chosen = probabilities[kept(keep_top_p(logits, p))]
    assert chosen.sum() >= p - 1e-9
    assert chosen.sum() - chosen.min() < p + 1e-9


def test_greedy_takes_the_most_probable_and_sampling_follows_the_probabilities():
    generator = torch.Generator().manual_seed(0)
    assert {choose(LOGITS, GREEDY, generator) for _ in range(5)} == {1}
    drawn = [choose(LOGITS, SamplingOptions(temperature=1.0), generator) for _ in range(4000)]
    shares = torch.bincount(torch.tensor(drawn), minlength=4) / 4000
    assert torch.allclose(shares, LOGITS.exp(), atol=0.04)
    cold = SamplingOptions(temperature=0.05)
    assert {choose(LOGITS, cold, generator) for _ in range(50)} <= {1, 3}


def test_the_repetition_penalty_is_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, seen = torch.randn(9, generator=torch.Generator().manual_seed(0)), [1, 4, 4, 7]
    wanted = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([seen]), logits[None].clone())[0]
    assert torch.equal(penalized(logits, seen, 1.7), wanted)
    assert penalized(logits, [], 1.7) is logits
    assert (
        choose(torch.tensor([1.0, 0.9]), SamplingOptions(repetition_penalty=2.0), torch.Generator(), [0]) == 1
    )


@pytest.mark.parametrize("temperature", [1e-20, 1e-40, 5e-324])
@pytest.mark.parametrize("cut", [{}, {"top_k": 2}, {"top_p": 0.5}])
def test_the_smallest_temperatures_are_greedy(temperature, cut):
    options = SamplingOptions(temperature=temperature, **cut)
    for logits in (LOGITS, LOGITS - 50, torch.tensor([-3e38, 3e38, 0.0])):
        chosen = {choose(logits, options, torch.Generator().manual_seed(n)) for n in range(5)}
        assert chosen == {int(logits.argmax())}


def test_the_temperature_divides_the_logits():
    options, generator = SamplingOptions(temperature=2.0), torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.tensor([choose(LOGITS + 50, options, generator) for _ in range(4000)]))
    assert torch.allclose(counts / 4000, (LOGITS / 2).softmax(-1), atol=0.03)


@pytest.mark.parametrize("penalty", [1e38, 1e39, 1e308])
def test_the_largest_penalties_leave_a_choice(penalty):
    options = SamplingOptions(temperature=1.0, repetition_penalty=penalty)
    logits = torch.tensor([-1.0, -2.0, -3.0])
    assert choose(logits, options, torch.Generator(), [0, 1, 2]) in (0, 1, 2)
    assert choose(logits, options, torch.Generator(), [0, 1]) == 2
