"""`pretrain.parity.replicas` where states lie on the host and the group of ranks wants its device."""

from __future__ import annotations

import pytest
import torch

from pretrain.parity import replicas


class Sent(Exception):
    pass


def test_sums_of_offloaded_weights_travel_on_the_device_of_the_ranks(monkeypatch):
    def all_gather(everyone, mine, group):
        raise Sent(mine.device.type, {tensor.device.type for tensor in everyone})

    monkeypatch.setattr(replicas.dist, "get_process_group_ranks", lambda group: [0, 1])
    monkeypatch.setattr(replicas.dist, "all_gather", all_gather)
    with pytest.raises(Sent) as sent:
        replicas._differences(None, [("w", "weight", torch.ones(3))], torch.device("meta"))
    assert sent.value.args == ("meta", {"meta"})
