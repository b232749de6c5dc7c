import numpy as np
import pytest
import torch

from apqkit.elastic.supernet import ElasticSupernet
from apqkit.quant.calibration import calibrate
from apqkit.spaces.base import largest_picks, smallest_picks


def outputs(supernet, layers, images):
    supernet.select(layers)
    with torch.no_grad():
        return supernet(images)


@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize("formats", ["fp32", "mixed"])
def test_selecting_equals_extracting(space, supernet, picks, images, formats, index):
    table = space.network(picks)
    layers = (table.in_fp32() if formats == "fp32" else table).layers(index)
    extracted = supernet.extract(layers).train()
    with torch.no_grad():
        assert torch.allclose(
            outputs(supernet, layers, images), extracted(images), rtol=1e-5, atol=1e-6
        )


def test_nothing_leaks_from_one_subnet_to_the_next(space, supernet, picks, images):
    table = space.network(np.concatenate([picks, largest_picks(space.dims)]))
    count = len(picks) + 1
    first = [outputs(supernet, table.layers(index), images) for index in range(count)]
    for index in reversed(range(count)):
        assert torch.equal(outputs(supernet, table.layers(index), images), first[index])


def test_a_batch_leaves_no_trace(space, supernet, picks, images):
    before = outputs(supernet, space.network(picks).layers(), images)
    supernet(images * 100.0)
    supernet(torch.zeros_like(images))
    assert torch.equal(supernet(images), before)


def test_measuring_a_subnet_does_not_change_another(space, supernet, picks, images):
    table = space.network(picks)

    def measured(index):
        model = supernet.extract(table.layers(index))
        calibrate(model, images)
        with torch.no_grad():
            return model(images)

    state = {name: each.clone() for name, each in supernet.state_dict().items()}
    first = measured(0)
    outputs(supernet, table.layers(1), images * 3)
    assert not torch.equal(measured(1), first)
    assert torch.equal(measured(0), first)
    for name, each in supernet.state_dict().items():
        assert torch.equal(each.nan_to_num(), state[name].nan_to_num())


def test_formats_of_the_last_subnet_do_not_stay(space, supernet, images):
    table = space.network(largest_picks(space.dims))
    in_fp32 = outputs(supernet, table.in_fp32().layers(), images)
    coarse = outputs(supernet, table.with_formats("int2", "int2").layers(), images)
    assert not torch.allclose(coarse, in_fp32, rtol=0.1)
    assert torch.equal(outputs(supernet, table.in_fp32().layers(), images), in_fp32)


def test_gradients_reach_what_is_selected_alone(space, supernet, images):
    layers = space.network(smallest_picks(space.dims)).layers()
    supernet.select(layers)
    supernet(images).square().sum().backward()
    chosen = {each.name.replace(".", "_"): each for each in layers if each.weight_format}
    for name, unit in supernet.units.items():
        if not hasattr(unit, "weight"):
            continue
        if name not in chosen:
            assert unit.weight.grad is None
            continue
        row = chosen[name]
        inside = torch.zeros_like(unit.weight, dtype=torch.bool)
        if row.op == "linear":
            inside[:, : row.in_channels] = True
        else:
            edge = (unit.weight.shape[-1] - row.kernel) // 2
            taps = slice(edge, edge + row.kernel)
            inside[: row.out_channels, : row.in_channels // row.groups, taps, taps] = True
        assert (unit.weight.grad[~inside] == 0).all()
        assert (unit.weight.grad[inside] != 0).any()


def test_a_seed_makes_the_weights_and_leaves_the_global_generator_alone(space):
    layers = space.network(largest_picks(space.dims)).layers()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (ElasticSupernet(layers, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, same.get_parameter(name))
    stem = "units.stem.weight"
    assert not torch.equal(one.get_parameter(stem), other.get_parameter(stem))


def test_starts_as_the_largest_network(space, images):
    layers = space.network(largest_picks(space.dims)).layers()
    net = ElasticSupernet(layers, seed=0).train()
    with torch.no_grad():
        before = net(images)
    assert torch.equal(outputs(net, layers, images), before)
