import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.hessian import HessianEffort, hessian_spectrum
from predictors.zerocost.passes import Passes, named_weights

THOROUGH = HessianEffort(fewest_vectors=400, most_vectors=400)


def spectrum(model, batch, effort, *, loss=F.cross_entropy, seed=0):
    passes = Passes(model, *batch, loss=loss, reference=None, quantize={}, seed=seed)
    return hessian_spectrum(passes, list(named_weights(model)), effort)


def exact_hessian(model, batch) -> tuple[Tensor, list[slice]]:
    """The Hessian of all weights, one row after the other, and the place of each layer."""
    weights = list(named_weights(model).values())
    loss = F.cross_entropy(model(batch[0].clone()), batch[1])
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    rows = []
    for gradient in gradients:
        for element in gradient.flatten():
            row = torch.autograd.grad(element, weights, retain_graph=True)
            rows.append(torch.cat([each.flatten() for each in row]))
    ends = np.cumsum([each.numel() for each in weights]).tolist()
    return torch.stack(rows), [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]


@pytest.fixture
def exact(conv_net, batch):
    hessian, places = exact_hessian(conv_net, batch)
    assert torch.allclose(hessian, hessian.T)
    return hessian, places


class Quadratic(nn.Module):
    """Its loss has a diagonal Hessian: the given curvatures."""

    def __init__(self, *curvatures: Tensor) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn_like(each) for each in curvatures)
        self.curvatures = curvatures

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.weights, self.curvatures, strict=True)
        return x.sum() * 0.0 + sum((0.5 * c * w**2).sum() for w, c in pairs)


def as_loss(outputs, labels):
    return outputs


def small_batch() -> tuple[Tensor, Tensor]:
    return torch.ones(2, 1), torch.zeros(2)


def test_traces_equal_those_of_the_exact_hessian(conv_net, batch, exact) -> None:
    hessian, places = exact
    found = spectrum(conv_net, batch, THOROUGH)
    expected = [float(hessian[place, place].trace()) for place in places]
    for trace, error, truth in zip(found.traces, found.trace_errors, expected, strict=True):
        assert abs(trace - truth) < 3.0 * error
    assert (found.trace_errors < 0.1 * max(map(abs, expected))).all()


def test_draws_vary_as_the_exact_hessian_says(conv_net, batch, exact) -> None:
    """By their variance, which follows from the squares of the Hessian's elements."""
    hessian, places = exact
    found = spectrum(conv_net, batch, THOROUGH)
    for layer, place in enumerate(places):
        block = hessian[place]
        variance = 2.0 * float(
            block[:, place].square().sum() - block[:, place].diagonal().square().sum()
        )
        others = block.square().sum() - block[:, place].square().sum()
        variance += float(others)
        assert found.trace_draws[:, layer].var() == pytest.approx(variance, rel=0.35)


def test_a_diagonal_hessian_needs_no_more_than_the_fewest_vectors() -> None:
    curvatures = torch.tensor([[3.0, -1.0], [0.5, 2.0]]), torch.tensor([[0.0, 7.0, 1.0]])
    found = spectrum(Quadratic(*curvatures), small_batch(), HessianEffort(), loss=as_loss)
    assert found.traces == pytest.approx([4.5, 8.0], rel=1e-6)
    assert found.trace_errors == pytest.approx([0.0, 0.0], abs=1e-6)
    assert found.trace_draws.shape == (8, 2)


def test_errors_are_those_of_a_mean(conv_net, batch) -> None:
    found = spectrum(conv_net, batch, HessianEffort(fewest_vectors=5, most_vectors=5))
    for layer in range(3):
        draws = found.trace_draws[:, layer].tolist()
        mean = sum(draws) / 5
        deviation = math.sqrt(sum((each - mean) ** 2 for each in draws) / 4)
        assert found.traces[layer] == pytest.approx(mean)
        assert found.trace_errors[layer] == pytest.approx(deviation / math.sqrt(5))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_layer_ends_when_its_standard_error_is_small_and_not_before(batch, seed) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(98, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    effort = HessianEffort(relative_tolerance=0.2, fewest_vectors=4, most_vectors=600)
    found = spectrum(net, batch, effort, seed=seed)

    def settled(draws) -> bool:
        mean = sum(draws) / len(draws)
        squares = sum((each - mean) ** 2 for each in draws)
        return math.sqrt(squares / (len(draws) - 1) / len(draws)) <= 0.2 * abs(mean)

    lengths = []
    for layer in range(2):
        draws = [each for each in found.trace_draws[:, layer].tolist() if each == each]
        assert settled(draws)
        assert not any(settled(draws[:vectors]) for vectors in range(4, len(draws)))
        assert found.traces[layer] == pytest.approx(sum(draws) / len(draws))
        lengths.append(len(draws))
    assert 4 <= min(lengths) < max(lengths) == len(found.trace_draws) < 600


def test_settled_layers_do_not_disturb_the_others(batch) -> None:
    """Alone, the small layer's draws vary far less than beside the large one."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(98, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    effort = HessianEffort(relative_tolerance=0.2, fewest_vectors=4, most_vectors=600)
    large, small = spectrum(net, batch, effort).trace_draws.T
    alone = np.isnan(large)
    assert small[alone].std() < 0.5 * small[~alone].std()


def test_ends_after_the_most_vectors(conv_net, batch) -> None:
    effort = HessianEffort(relative_tolerance=1e-9, fewest_vectors=2, most_vectors=6)
    assert len(spectrum(conv_net, batch, effort).trace_draws) == 6


def test_draws_do_not_depend_on_when_they_end(conv_net, batch) -> None:
    few, many = (
        spectrum(conv_net, batch, HessianEffort(fewest_vectors=each, most_vectors=each))
        for each in (3, 6)
    )
    assert (few.trace_draws == many.trace_draws[:3]).all()


def test_one_backward_graph_serves_all_vectors(conv_net, batch, counted_passes) -> None:
    calls = counted_passes(model=conv_net)
    spectrum(conv_net, batch, HessianEffort(fewest_vectors=5, most_vectors=5))
    assert calls == ["model", *["backward"] * 6]


def test_eigenvalues_equal_those_of_the_exact_hessian(conv_net, batch, exact) -> None:
    hessian, places = exact
    effort = HessianEffort(most_vectors=8, most_iterations=3000, eigenvalue_tolerance=1e-6)
    found = spectrum(conv_net, batch, effort)
    for layer, place in enumerate(places):
        values = torch.linalg.eigvalsh(hessian[place, place])
        largest = float(values[values.abs().argmax()])
        assert found.eigenvalues[layer] == pytest.approx(largest, rel=1e-5)
        assert found.eigenvalue_residuals[layer] <= 1e-6 * abs(largest)


def test_a_top_eigenvalue_may_be_negative() -> None:
    model = Quadratic(torch.tensor([[1.0, -5.0, 2.0]]))
    effort = HessianEffort(most_iterations=200, eigenvalue_tolerance=1e-4)
    found = spectrum(model, small_batch(), effort, loss=as_loss)
    assert found.eigenvalues == pytest.approx([-5.0], rel=1e-6)


def test_iterations_end_within_the_tolerance_and_after_the_most(conv_net, batch) -> None:
    short, long = (
        spectrum(conv_net, batch, HessianEffort(most_iterations=most, eigenvalue_tolerance=0.05))
        for most in (1, 2000)
    )
    assert (long.eigenvalue_residuals <= 0.05 * abs(long.eigenvalues)).all()
    assert (short.eigenvalue_residuals > 0.05 * abs(short.eigenvalues)).any()


def test_eigenvalues_are_left_out_by_default(conv_net, batch, counted_passes) -> None:
    found = spectrum(conv_net, batch, HessianEffort())
    assert found.eigenvalues is None
    assert found.eigenvalue_residuals is None


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature() -> None:
    model = nn.Linear(3, 2, bias=False)
    batch = torch.ones(4, 3), torch.zeros(4)
    effort = HessianEffort(most_iterations=5)
    found = spectrum(model, batch, effort, loss=lambda outputs, labels: outputs.sum())
    assert found.traces.tolist() == found.trace_errors.tolist() == [0.0]
    assert found.eigenvalues.tolist() == found.eigenvalue_residuals.tolist() == [0.0]
    assert len(found.trace_draws) == 8


def test_dropout_is_the_same_for_all_vectors(dropout_net, batch32) -> None:
    """A diagonal part of the Hessian alone would have no error; a new mask each time would."""
    one, same, other = (
        spectrum(dropout_net, batch32, HessianEffort(most_vectors=8), seed=seed).traces
        for seed in (0, 0, 1)
    )
    assert (one == same).all()
    assert (one != other).any()


def test_quantized_layers_have_a_trace(quant_net, batch32) -> None:
    found = spectrum(quant_net, batch32, HessianEffort())
    assert np.isfinite(found.traces).all()
    assert (found.traces != 0.0).all()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 12)
        self.classify = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(x).unsqueeze(1).chunk(3, dim=-1)
        return self.classify(F.scaled_dot_product_attention(query, key, value).mean((1, 2)))


def test_attention_has_a_second_derivative() -> None:
    model = Attention()
    batch = torch.randn(2, 5, 4), torch.tensor([0, 2])
    found = spectrum(model, batch, HessianEffort())
    assert (found.traces != 0.0).all()


def error_of(function) -> str:
    with pytest.raises(ProxyError) as caught:
        function()
    return str(caught.value)


def test_says_that_a_function_can_be_differentiated_only_once(batch) -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return 2.0 * ctx.saved_tensors[0] * gradient

    class Net(nn.Linear):
        def forward(self, x):
            return Square.apply(super().forward(x.flatten(1)))

    model = Net(98, 3).double()
    assert error_of(lambda: spectrum(model, batch, HessianEffort())) == (
        "the model cannot be differentiated twice: a function in it can be differentiated "
        "only once"
    )


def test_says_which_second_derivative_is_missing(conv_net, batch) -> None:
    def loss(outputs, labels):
        return torch.cdist(outputs, F.one_hot(labels).double()).mean()

    assert error_of(lambda: spectrum(conv_net, batch, HessianEffort(), loss=loss)) == (
        "the model cannot be differentiated twice: the derivative for '_cdist_backward' is "
        "not implemented."
    )


def test_a_lack_of_memory_is_no_fault_of_the_model(conv_net, batch) -> None:
    def loss(outputs, labels):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError, match="full"):
        spectrum(conv_net, batch, HessianEffort(), loss=loss)


def test_names_a_layer_whose_hessian_is_not_finite(conv_net, batch) -> None:
    def loss(outputs, labels):
        return ((outputs * 0.0).abs() ** 1.5).sum()  # has a slope at 0, and no curvature

    assert error_of(lambda: spectrum(conv_net, batch, HessianEffort(), loss=loss)) == (
        "the Hessian of '0.weight' is not finite"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"relative_tolerance": 0.0}, "relative_tolerance must be above 0, got 0.0"),
        ({"eigenvalue_tolerance": math.nan}, "eigenvalue_tolerance must be above 0, got nan"),
        (
            {"fewest_vectors": 1},
            "vectors must obey 2 <= fewest_vectors <= most_vectors, got 1 and 100",
        ),
        (
            {"most_vectors": 7},
            "vectors must obey 2 <= fewest_vectors <= most_vectors, got 8 and 7",
        ),
        ({"most_iterations": -1}, "most_iterations must be 0 or more, got -1"),
    ],
)
def test_says_what_is_out_of_range(settings, message) -> None:
    assert error_of(lambda: HessianEffort(**settings)) == message
