import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from apqkit.errors import RunError
from apqkit.training.checkpoint import (
    load_tensors,
    load_weights,
    optimizer_tensors,
    restore_optimizer,
    save_tensors,
)

CURE = "delete it"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.safetensors"


def model_of(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))
    net[0].weight = nn.Parameter(net[0].weight.contiguous(memory_format=torch.channels_last))
    return net


def stepped(net, count=2, optimizer=None, seed=0):
    """Trains for some steps; returns the optimiser."""
    optimizer = optimizer or torch.optim.AdamW(net.parameters(), lr=1e-2, fused=True)
    for step in range(count):
        images = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(seed + step))
        optimizer.zero_grad()
        net(images).square().mean().backward()
        optimizer.step()
    return optimizer


@pytest.fixture(autouse=True)
def _own_random_numbers():
    with torch.random.fork_rng(devices=[]):
        yield


def refusal(call, *arguments):
    with pytest.raises(RunError) as caught:
        call(*arguments)
    return str(caught.value)


def test_tensors_and_facts_come_back_bit_for_bit(path):
    tensors = {
        "a": torch.randn(3, 4, 2, 2).contiguous(memory_format=torch.channels_last),
        "b": torch.tensor(float("nan")),
        "turned": torch.arange(6.0).view(2, 3).T,
        "count": torch.tensor([1, 2**40]),
        "weight": nn.Parameter(torch.randn(2)),
    }
    meta = {"phase": "fp32", "losses": [{"largest": 0.1}]}
    save_tensors(path, tensors, meta)
    found, facts = load_tensors(path, CURE)
    assert facts == meta
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert np.array_equal(found[name], tensor.detach(), equal_nan=tensor.is_floating_point())
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_file_is_plain_safetensors(path):
    save_tensors(path, {"a": torch.arange(3.0)}, {})
    assert load_file(path)["a"].tolist() == [0.0, 1.0, 2.0]


def test_a_file_cut_anywhere_names_itself_and_the_cure(path):
    save_tensors(path, {"a": torch.arange(40.0)}, {"phase": "fp32"})
    content = path.read_bytes()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        assert refusal(load_tensors, path, CURE) == (
            f"{path} is truncated or was not written by apqkit; delete it"
        )


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"apqkit": "{"}, {"apqkit": "3"}])
def test_a_foreign_safetensors_file_is_refused(path, metadata):
    save_file({"a": torch.zeros(2)}, path, metadata=metadata)
    assert refusal(load_tensors, path, CURE) == (
        f"{path} is truncated or was not written by apqkit; delete it"
    )


class Trap:
    """Pickles to a call that leaves a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def test_a_pickle_is_refused_and_its_code_does_not_run(path, tmp_path):
    mark = tmp_path / "mark"
    path.write_bytes(pickle.dumps(Trap(mark)))
    assert refusal(load_tensors, path, CURE) == (
        f"{path} is truncated or was not written by apqkit; delete it"
    )
    torch.save({"a": Trap(mark)}, path)
    refusal(load_tensors, path, CURE)
    assert not mark.exists()


def test_a_missing_file_is_named(path):
    assert refusal(load_tensors, path, CURE) == (
        f"{path} cannot be read: No such file or directory; delete it"
    )


def test_weights_go_into_a_model_and_keep_its_layout(path, same_tensors):
    source, target = model_of(0), model_of(1)
    save_tensors(path, source.state_dict(), {})
    tensors, _ = load_tensors(path, CURE)
    load_weights(target, tensors, path)
    assert same_tensors(source.state_dict(), target.state_dict())
    assert target[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_weights_of_another_network_are_refused_by_name(path):
    tensors = model_of().state_dict()
    lacking = {name: each for name, each in tensors.items() if name != "3.bias"}
    assert refusal(load_weights, model_of(), lacking, path) == (
        f"{path} does not belong to this network: it has no 3.bias"
    )
    assert refusal(load_weights, model_of(), {**tensors, "3.bias": torch.zeros(6)}, path) == (
        f"{path} does not belong to this network: 3.bias must have shape (5,), got (6,)"
    )
    for more in ("4.bias", "4.bias|exp_avg"):
        assert refusal(load_weights, model_of(), {**tensors, more: torch.zeros(5)}, path) == (
            f"{path} does not belong to this network: it also has {more}"
        )


def test_a_refused_file_leaves_the_model_alone(path, same_tensors):
    net = model_of(0)
    before = {name: each.clone() for name, each in net.state_dict().items()}
    other = {**model_of(1).state_dict(), "3.bias": torch.zeros(6)}
    refusal(load_weights, net, other, path)
    assert same_tensors(before, net.state_dict())


def test_training_goes_on_bit_for_bit_after_a_restore(path, same_tensors):
    straight = model_of(0)
    optimizer = stepped(straight, 3)
    save_tensors(path, {**straight.state_dict(), **optimizer_tensors(straight, optimizer)}, {})
    stepped(straight, 4, optimizer, seed=50)

    resumed = model_of(9)
    fresh = torch.optim.AdamW(resumed.parameters(), lr=1e-2, fused=True)
    tensors, _ = load_tensors(path, CURE)
    load_weights(resumed, tensors, path)
    restore_optimizer(resumed, fresh, tensors)
    stepped(resumed, 4, fresh, seed=50)
    assert same_tensors(straight.state_dict(), resumed.state_dict())
    assert same_tensors(optimizer_tensors(straight, optimizer), optimizer_tensors(resumed, fresh))


def test_restored_state_has_the_layout_of_its_parameter(path):
    net = model_of()
    optimizer = stepped(net)
    save_tensors(path, {**net.state_dict(), **optimizer_tensors(net, optimizer)}, {})
    fresh = torch.optim.AdamW(net.parameters(), fused=True)
    restore_optimizer(net, fresh, load_tensors(path, CURE)[0])
    state = fresh.state[net[0].weight]
    assert state["exp_avg"].stride() == net[0].weight.stride()
    assert torch.equal(state["exp_avg"], optimizer.state[net[0].weight]["exp_avg"])
    assert state["step"].item() == 2


def test_state_is_named_by_its_parameter():
    net = model_of()
    names = set(optimizer_tensors(net, stepped(net)))
    parameters = [name for name, _ in net.named_parameters()]
    assert names == {f"{p}|{key}" for p in parameters for key in ("step", "exp_avg", "exp_avg_sq")}


def test_an_optimiser_that_never_stepped_has_no_state():
    net = model_of()
    assert optimizer_tensors(net, torch.optim.AdamW(net.parameters())) == {}


def test_facts_must_be_plain_json(path):
    with pytest.raises(TypeError):
        save_tensors(path, {"a": torch.zeros(1)}, {"rng": object()})
    assert not path.exists()
    save_tensors(path, {"a": torch.zeros(1)}, {"seed": 3})
    assert json.dumps(load_tensors(path, CURE)[1]) == '{"seed": 3}'
