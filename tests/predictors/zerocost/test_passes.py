import pytest
import torch
from torch import nn

from predictors.zerocost import ProxyError, ProxySession
from predictors.zerocost.passes import (
    Passes,
    curvature_pass,
    forward_pass,
    input_gradient_pass,
    loss_pass,
    loss_passes,
    named_weights,
    reference_pass,
    run_model,
)


def passes_of(model, batch, **changes) -> Passes:
    settings = {"loss": nn.functional.cross_entropy, "reference": None, "quantize": {}, "seed": 0}
    return Passes(model, *batch, **(settings | changes))


def test_a_pass_runs_once(conv_net, batch, counted_passes) -> None:
    calls = counted_passes(model=conv_net)
    passes = passes_of(conv_net, batch)
    assert passes.of(loss_pass) is passes.of(loss_pass)
    assert calls == ["model", "backward"]


def test_forward_is_that_of_a_planned_loss(conv_net, batch, counted_passes) -> None:
    calls = counted_passes(model=conv_net)
    passes = passes_of(conv_net, batch, planned=frozenset({"L", "F"}))
    assert passes.of(forward_pass) is passes.of(loss_pass).forward
    assert not passes.of(forward_pass).outputs.requires_grad
    assert calls == ["model", "backward"]


GRADIENTS = [input_gradient_pass, loss_pass, curvature_pass, forward_pass]


@pytest.mark.parametrize("first", range(len(GRADIENTS)))
def test_all_gradients_share_one_forward_pass(conv_net, batch, counted_passes, first) -> None:
    calls = counted_passes(model=conv_net)
    passes = passes_of(conv_net, batch, planned=frozenset("LFJH"))
    for each in GRADIENTS[first:] + GRADIENTS[:first]:
        passes.of(each)
    assert calls == ["model", *["backward"] * 3]


@pytest.mark.parametrize("run", [loss_pass, curvature_pass, input_gradient_pass])
def test_a_pass_finds_the_same_alone_as_beside_others(net, batch, run) -> None:
    def found(planned):
        result = passes_of(net, batch, planned=frozenset(planned)).of(run)
        if run is loss_pass:
            result = {name: each.tolist() for name, each in result.gradients.items()}
        return result.tolist() if run is input_gradient_pass else result

    alone, together = found(""), found("LFJH")
    if isinstance(alone, dict):
        assert list(together) == list(alone)
        alone, together = list(alone.values()), list(together.values())
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(
            torch.tensor(one, dtype=torch.float64),
            torch.tensor(other, dtype=torch.float64),
            rtol=1e-9,
            atol=1e-13,
        )


def test_input_gradients_are_those_of_the_sum_of_all_outputs(net, batch) -> None:
    images = batch[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(net(images.clone()).sum(), images)
    found = passes_of(net, batch).of(input_gradient_pass)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-13)
    assert not batch[0].requires_grad


def test_loss_passes_are_those_of_each_batch(conv_net, batch) -> None:
    other = batch[0] * 2.0, batch[1].flip(0)
    found = passes_of(conv_net, batch, more_batches=(other, other)).of(loss_passes)
    expected = [passes_of(conv_net, each).of(loss_pass) for each in (batch, other, other)]
    assert [each.loss for each in found] == [each.loss for each in expected]


def test_loss_pass_returns_the_loss(conv_net, batch) -> None:
    found = passes_of(conv_net, batch).of(loss_pass)
    expected = nn.functional.cross_entropy(conv_net(batch[0].clone()), batch[1])
    assert found.loss == pytest.approx(float(expected.detach()), rel=1e-12)
    assert found.weights.keys() == found.gradients.keys()


def test_weights_have_two_axes_or_more(conv_net) -> None:
    assert list(named_weights(conv_net)) == ["0.weight", "3.weight", "8.weight"]


def test_inputs_are_not_overwritten(batch) -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(98, 3)).double()
    before = batch[0].clone()
    ProxySession(model, batch).compute(["snip"])
    assert torch.equal(batch[0], before)


def test_gradients_come_without_grad_mode_too(conv_net, batch) -> None:
    names = ["grad_norm", "synflow", "naswot"]
    session = ProxySession(conv_net, batch)
    expected = session.compute(names)
    with torch.no_grad():
        assert session.compute(names) == expected
    with torch.inference_mode():
        assert session.compute(names) == expected
        assert ProxySession(conv_net, (batch[0] * 1, batch[1] * 1)).compute(names) == expected


def error_of(function) -> str:
    with pytest.raises(ProxyError) as caught:
        function()
    return str(caught.value)


@pytest.mark.parametrize("frozen", [True, False])
def test_says_that_no_gradient_reaches_a_weight(conv_net, batch, frozen) -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = conv_net

        def forward(self, x):
            return self.inner(x).detach()

    if frozen:
        conv_net.requires_grad_(False)
    message = error_of(lambda: ProxySession(Cut(), batch).compute(["snip"]))
    counts = "3 are frozen and 0 unused" if frozen else "0 are frozen and 3 unused"
    assert message == (
        f"no gradient reaches any weight: of 3 weights with 2 or more axes {counts}"
    )


def test_says_that_only_biases_take_gradients(conv_net, batch) -> None:
    for each in named_weights(conv_net).values():
        each.requires_grad_(False)
    assert error_of(lambda: ProxySession(conv_net, batch).compute(["grad_norm"])) == (
        "no gradient reaches any weight: of 3 weights with 2 or more axes 3 are frozen and "
        "0 unused"
    )


@pytest.mark.parametrize(("value", "text"), [(float("nan"), "nan"), (float("inf"), "inf")])
def test_says_that_the_loss_is_not_finite(conv_net, batch, value, text) -> None:
    def loss(outputs, labels):
        return outputs.sum() * value

    session = ProxySession(conv_net, batch, loss=lambda outputs, labels: loss(outputs**2, labels))
    assert error_of(lambda: session.compute(["snip"])) == f"the loss is not finite: {text}"


def test_says_that_the_loss_is_no_scalar(conv_net, batch) -> None:
    session = ProxySession(conv_net, batch, loss=lambda outputs, labels: outputs.sum(1))
    assert error_of(lambda: session.compute(["snip"])) == (
        "the loss must be a scalar, got shape (8,)"
    )


def test_names_a_gradient_that_is_not_finite(conv_net, batch) -> None:
    def loss(outputs, labels):
        return (outputs * 0.0).abs().sqrt().sum()  # the root has no slope at 0

    session = ProxySession(conv_net, batch, loss=loss)
    assert error_of(lambda: session.compute(["snip"])) == (
        "the gradient of '0.weight' is not finite"
    )


@pytest.mark.parametrize("name", ["snip", "naswot", "synflow"])
def test_says_that_the_model_returns_no_tensor(batch32, name) -> None:
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1).relu()), x

    session = ProxySession(Pair(98, 3), batch32)
    assert error_of(lambda: session.compute([name])) == (
        "the model must return a tensor, got tuple"
    )


def test_passes_say_what_the_batch_or_the_session_lacks(conv_net, batch) -> None:
    assert error_of(lambda: passes_of(conv_net, (batch[0], None)).of(loss_pass)) == (
        "the loss needs labels, and the batch has none"
    )
    assert error_of(lambda: passes_of(conv_net, batch).of(reference_pass)) == (
        "there is no reference: give ProxySession(..., reference=fp32_model)"
    )


def test_input_gradients_need_floating_inputs_that_matter(conv_net, batch) -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8, 3))

        def forward(self, x):
            return self.weight * 2.0

    def message(model, images):
        return error_of(lambda: passes_of(model, (images, batch[1])).of(input_gradient_pass))

    assert message(Deaf(), batch[0]) == "the outputs do not depend on the inputs"
    assert message(Deaf().requires_grad_(False), batch[0]) == (
        "the outputs do not depend on the inputs"
    )
    assert message(nn.Embedding(9, 3), batch[1]) == (
        "the gradient of the inputs needs numbers, got torch.int64"
    )
    with torch.no_grad():
        conv_net[8].weight.fill_(float("inf"))
    assert message(conv_net, batch[0]) == "the gradient of the inputs is not finite"


def test_names_a_second_gradient_that_is_not_finite(conv_net, batch) -> None:
    def loss(outputs, labels):
        return (outputs * 0.0).abs().pow(1.5).sum()  # bends without end at 0

    session = ProxySession(conv_net, batch, loss=loss)
    assert error_of(lambda: session.compute(["grasp"])) == (
        "the second gradient of '0.weight' is not finite"
    )


def test_says_that_a_normalisation_saw_single_values() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    assert error_of(lambda: run_model(net, torch.zeros(1, 4))) == (
        "batch normalisation in training mode needs more than 1 value per channel, and this "
        "batch has 1 samples: give more, or the model in evaluation mode"
    )


def test_other_errors_of_a_model_are_its_own() -> None:
    class Fails(nn.Module):
        def forward(self, x):
            raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        run_model(Fails(), torch.zeros(1))
