import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from predictors.zerocost.layer_recorder import LayerRecorder
from predictors.zerocost.passes import named_weights


def watched(model, x) -> tuple[LayerRecorder, list[str]]:
    recorder = LayerRecorder(model, len(x))
    with recorder:
        model(x)
    return recorder, list(named_weights(model))


def plain_gram(outputs) -> np.ndarray:
    rows = outputs.detach().double().flatten(1).numpy()
    centring = np.eye(len(rows)) - 1.0 / len(rows)
    return centring @ rows @ rows.T @ centring


def check_inputs(statistics, place, tensors) -> None:
    values = np.concatenate([each.detach().double().numpy().ravel() for each in tensors])
    assert statistics.mean[place] == pytest.approx(values.mean(), rel=1e-9, abs=1e-12)
    assert statistics.std[place] == pytest.approx(values.std(), rel=1e-9)
    assert statistics.abs_max[place] == pytest.approx(abs(values).max(), rel=1e-12)
    assert statistics.second_moment[place] == pytest.approx((values**2).mean(), rel=1e-9)


def test_inputs_and_outputs_are_those_of_each_layer(conv_net, batch) -> None:
    recorder, layers = watched(conv_net, batch[0].clone())
    statistics, grams = recorder.inputs(layers), recorder.grams(layers)
    x, places = batch[0], iter(range(3))
    for module in conv_net:
        if isinstance(module, nn.Conv2d | nn.Linear):
            place = next(places)
            check_inputs(statistics, place, [x])
            gram = plain_gram(module(x))
            assert grams[place].numpy() == pytest.approx(gram, rel=1e-9, abs=1e-9)
        x = module(x.clone())


def test_any_class_of_layer_is_watched(quant_net, batch32) -> None:
    x = batch32[0]
    recorder, layers = watched(quant_net, x)
    assert layers == ["0.weight", "1.weight", "4.weight"]
    check_inputs(recorder.inputs(layers), 0, [x])
    assert recorder.macs(layers).tolist() == [7 * 7 * 2 * 6 * 9, 7 * 7 * 6 * 4 * 9, 4 * 3]


def test_what_is_called_twice_adds_up() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(3, 3).double()

        def forward(self, x):
            return self.shared(self.shared(x))

    model = Twice()
    x = torch.randn(4, 3, dtype=torch.float64)
    recorder, layers = watched(model, x)
    check_inputs(recorder.inputs(layers), 0, [x, model.shared(x)])
    assert recorder.macs(layers).tolist() == [18]
    both = torch.cat([model.shared(x), model(x)], dim=1)
    assert recorder.grams(layers)[0].numpy() == pytest.approx(plain_gram(both), abs=1e-9)


def test_modules_that_share_a_weight_are_one_layer() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.embed(x))

    model = Tied()
    x = torch.tensor([[0, 1], [2, 3]])
    recorder, layers = watched(model, x)
    assert layers == ["embed.weight"]
    check_inputs(recorder.inputs(layers), 0, [model.embed(x)])
    assert recorder.macs(layers).tolist() == [2 * 3 * 5]


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 8, 8), 4 * 4 * 6 * 2 * 9),
        (nn.Conv1d(2, 3, 5), (2, 9), 5 * 3 * 2 * 5),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 5), 5 * 5 * 4 * 6 * 9),
        (nn.Linear(4, 6), (3, 4), 3 * 4 * 6),
        (nn.Bilinear(2, 3, 5), (2,), 5 * 2 * 3),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, nn.Module) else "",
)
def test_multiplications_follow_from_shapes(layer, shape, macs) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x):
            extra = [torch.ones(len(x), 3)] if isinstance(layer, nn.Bilinear) else []
            return self.layer(x, *extra)

    recorder, layers = watched(Net(), torch.randn(2, *shape))
    assert recorder.macs(layers).tolist() == [macs]


def test_a_look_up_multiplies_nothing() -> None:
    recorder, layers = watched(nn.Sequential(nn.Embedding(4, 4)), torch.tensor([[0, 1], [2, 3]]))
    assert recorder.macs(layers).tolist() == [0.0]


def test_layers_with_several_weights_have_no_count() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.ones(3, 4))
            self.other = nn.Parameter(torch.ones(3, 4))

        def forward(self, x):
            return F.linear(x, self.one) + F.linear(x, self.other)

    x = torch.randn(2, 4)
    recorder, layers = watched(nn.Sequential(Sum()), x)
    assert np.isnan(recorder.macs(layers)).all()
    for place in range(2):
        check_inputs(recorder.inputs(layers), place, [x])


def test_attention_has_no_count_and_its_projection_no_statistics() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            return self.attention(query=x, key=x, value=x)[0]

    x = torch.randn(3, 5, 4)
    recorder, layers = watched(Net(), x)
    assert layers == ["attention.in_proj_weight", "attention.out_proj.weight"]
    assert np.isnan(recorder.macs(layers)).all()
    statistics, grams = recorder.inputs(layers), recorder.grams(layers)
    check_inputs(statistics, 0, [x])
    assert grams[0].isfinite().all()
    assert grams[1].isnan().all()
    for each in vars(statistics).values():
        assert math.isnan(each[1])


def test_tensors_without_the_batch_in_front_are_left_aside() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 6)

        def forward(self, x):
            return self.layer(x.flatten(0, 1))

    recorder, layers = watched(Net(), torch.randn(2, 5, 4))
    assert np.isnan(recorder.inputs(layers).mean).all()
    assert np.isnan(recorder.macs(layers)).all()
    assert recorder.grams(layers).isnan().all()


def test_inputs_are_seen_before_a_layer_overwrites_them() -> None:
    class Overwriting(nn.Linear):
        def forward(self, x):
            return F.linear(x.zero_(), self.weight)

    x = torch.randn(3, 4)
    before = x.clone()
    recorder, layers = watched(nn.Sequential(Overwriting(4, 2)), x)
    check_inputs(recorder.inputs(layers), 0, [before])


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_are_taken_away(conv_net, batch, fails) -> None:
    try:
        with LayerRecorder(conv_net, 8):
            conv_net(batch[0])
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    for module in conv_net.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
