import pytest
import torch
from torch import nn

from predictors.zerocost import ProxyError, ProxySession
from predictors.zerocost.passes import (
    Passes,
    forward_pass,
    loss_pass,
    named_weights,
    reference_pass,
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
