"""polydistill.learning.sharded, as far as one process shows it; two of them are in tests/modules/test_torchrun.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from polydistill.learning.sharded import (
    as_pieces,
    as_whole,
    find_blocks,
    is_sharded,
    optimizer_state_as_pieces,
    own_class,
    piece_of,
    require_dividable,
    shard,
    share_at_once,
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.stages = nn.ModuleList([nn.Sequential(Block(), Block()), nn.Identity(), Block()])
        self.last = Block()
        self.head = nn.Linear(2, 2)


def test_blocks_are_the_items_of_the_outermost_lists() -> None:
    net = Net()
    assert find_blocks(net, ()) == [net.stages[0], net.stages[2], net.last.inner[0], net.last.inner[2]]
    layers = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert find_blocks(layers, ()) == [layers[0], layers[2]], "what has no parameters is none"


def test_blocks_are_the_outermost_modules_of_the_classes() -> None:
    net = Net()
    assert find_blocks(net, (Block,)) == [*net.stages[0].children(), net.stages[2], net.last]
    assert find_blocks(net, (Block, nn.Sequential)) == [net.stages[0], net.stages[2], net.last]
    assert find_blocks(net, (nn.Conv2d,)) == []


def test_what_is_whole_at_once_is_the_largest_block_and_what_is_in_none() -> None:
    net = Net()
    # of ten layers of one size: the stem, two Blocks of two in the first stage, one in the third, one more, the head
    for blocks, share in (((), (0.2, 0.6, "stages.0")), ((Block,), (0.2, 0.4, "stages.0.0"))):
        found = share_at_once(net, blocks)
        assert found[:2] == pytest.approx(share[:2])
        assert found.largest == share[2]
    assert share_at_once(net, (nn.Conv2d,)) == (1.0, 0.0, ""), "there are no blocks"


@pytest.mark.parametrize("outside", [False, True])
def test_weights_of_two_blocks_are_refused(outside: bool) -> None:
    net = Net()
    if outside:
        net.head.weight = net.last.inner[2].weight
    else:
        net.last.inner[2].weight = net.last.inner[0].weight
    told = r"last\.inner\.\d\.weight would be in two blocks; name the classes of larger"
    with pytest.raises(ValueError, match=told):
        shard(net, torch.device("cpu"), (), "build")


def test_what_is_not_sharded_stays_as_it_is() -> None:
    net = Net()
    assert not is_sharded(net)
    assert own_class(net) is Net
    weight = net.head.weight
    assert piece_of(weight) is weight
    assert as_pieces(weight, weight) is weight
    found = as_whole({"a": [weight, (1, "b")], "c": {"d": weight}})
    assert found["a"][0] is found["c"]["d"] is weight
    assert found["a"][1] == (1, "b")


def test_the_state_of_an_optimiser_without_pieces_is_given_back() -> None:
    layer = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    require_dividable(optimizer)
    state = optimizer.state_dict()
    found = optimizer_state_as_pieces(state, optimizer)
    assert found["param_groups"] == state["param_groups"]
    for number, of_parameter in state["state"].items():
        assert all(found["state"][number][key] is value for key, value in of_parameter.items())


def test_a_module_in_two_blocks_and_types_in_one_are_refused() -> None:
    net = Net()
    net.last.inner[0] = net.stages[2].inner[0]
    told = r"stages\.2\.inner\.0\.weight, stages\.2\.inner\.0\.bias would be in two blocks"
    with pytest.raises(ValueError, match=told):
        shard(net, torch.device("cpu"), (Block,), "build")
    net = Net()
    net.last.inner[0].bias.data = net.last.inner[0].bias.data.double()
    with pytest.raises(ValueError, match=r"weights of one block that learn are torch\.float32 and torch\.float64"):
        shard(net, torch.device("cpu"), (), "build")


def test_lists_of_lists_are_gone_through() -> None:
    pairs = nn.ModuleList([nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), nn.ModuleDict({"a": Block()})])
    assert find_blocks(nn.Sequential(pairs), ()) == [*pairs[0], *pairs[1]["a"].inner[::2]]


class Row:
    """A piece of a row of sums, as far as is looked at."""

    shape = (3,)

    def full_tensor(self) -> Tensor:
        return torch.zeros(3)


def test_a_state_of_another_shape_is_refused() -> None:
    layer = nn.Linear(2, 3)
    optimizer = torch.optim.SGD(layer.parameters())
    optimizer.state[layer.weight]["row"] = Row()
    with pytest.raises(ValueError, match="SGD keeps row in another shape than that of its parameter"):
        require_dividable(optimizer)
