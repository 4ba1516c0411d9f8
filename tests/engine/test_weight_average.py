"""Running averages of weights follow their formula, can be restarted and can be restored from a state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastcyclegan.engine.weight_average import WeightAverage


def test_averages_follow_weights_and_copy_statistics() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    average = WeightAverage({"G": net}, 0.75)
    expected = net[0].weight.detach().clone()
    for n in range(3):
        with torch.no_grad():
            net[0].weight += n
            net[1].running_mean += 1
            net[1].num_batches_tracked += 1
        average.update()
        expected = 0.75 * expected + 0.25 * net[0].weight.detach()
    torch.testing.assert_close(average.weights["G"]["0.weight"], expected)
    assert torch.equal(average.weights["G"]["1.running_mean"], net[1].running_mean)
    assert average.weights["G"]["1.num_batches_tracked"] == 3
    saved = copy.deepcopy(average.weights)
    average.restart()
    assert torch.equal(average.weights["G"]["0.weight"], net[0].weight)
    average.load_state_dict(saved)
    torch.testing.assert_close(average.weights["G"]["0.weight"], expected)


def test_networks_have_the_averages_in_a_block_and_their_own_weights_after_it() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    average = WeightAverage({"G": net}, 0.75)
    with torch.no_grad():
        for value in (*net.parameters(), net[1].running_mean):
            value += 1
    own, averages = copy.deepcopy(net.state_dict()), copy.deepcopy(average.weights["G"])
    parameters = list(net.parameters())

    def fails() -> None:
        with average.applied():
            assert all(torch.equal(value, averages[key]) for key, value in net.state_dict().items())
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert all(torch.equal(value, own[key]) for key, value in net.state_dict().items())
    assert all(torch.equal(value, averages[key]) for key, value in average.weights["G"].items())
    assert list(map(id, net.parameters())) == list(map(id, parameters))
    assert all(p.requires_grad for p in parameters)
