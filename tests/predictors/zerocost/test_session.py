import pytest
import torch
from torch import nn

import predictors.zerocost.session
from predictors.zerocost import PROXIES, Proxy, ProxyError, ProxyScore, ProxySession

ALL_FIVE = ["grad_norm", "snip", "synflow", "naswot", "sqnr"]


def error_of(function) -> str:
    with pytest.raises(ProxyError) as caught:
        function()
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["params", "l2_norm"], []),
        (["grad_norm"], ["model", "backward"]),
        (["grad_norm", "snip"], ["model", "backward"]),
        (["naswot"], ["model"]),
        (["naswot", "snip"], ["model", "backward"]),
        (["snip", "naswot", "grad_norm"], ["model", "backward"]),
        (["sqnr"], ["model", "reference"]),
        (["naswot", "sqnr"], ["model", "reference"]),
        (["synflow"], ["reference", "backward"]),
        (ALL_FIVE, ["model", "backward", "reference", "backward", "reference"]),
    ],
    ids=" ".join,
)
def test_runs_the_fewest_passes(
    quant_net, quant_twin, batch32, counted_passes, names, expected
) -> None:
    calls = counted_passes(model=quant_net, reference=quant_twin)
    session = ProxySession(quant_net, batch32, reference=quant_twin)
    assert list(session.compute(names)) == names
    assert calls == expected


EIGHT = ["grad_norm", "snip", "grasp", "fisher", "plain", "jacov", "synflow", "l2_norm"]


@pytest.mark.parametrize(
    ("names", "forwards", "backwards"),
    [
        (["grad_norm", "snip", "plain", "fisher"], 1, 1),
        (["grad_norm", "snip", "plain", "fisher", "jacov", "naswot", "l2_norm"], 1, 2),
        (["jacov", "epe_nas", "swap"], 1, 1),
        (["grasp"], 1, 2),
        ([each for each in EIGHT if each != "synflow"], 1, 3),
        (EIGHT, 2, 4),  # synflow: one forward and backward of its own, on one input
    ],
    ids=["four", "without grasp", "input gradient", "grasp", "seven", "eight"],
)
def test_gradients_share_one_forward_pass(
    conv_net, batch, counted_passes, names, forwards, backwards
) -> None:
    calls = counted_passes(model=conv_net)
    ProxySession(conv_net, batch).compute(names)
    assert calls.count("model") == forwards
    assert calls.count("backward") == backwards


class Flat(nn.Module):
    """Views what a convolution returns, which fails where its channels are last in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 4, 3), nn.Linear(100, 3)

    def forward(self, x):
        self.formats.append(x.is_contiguous())
        return self.last(self.conv(x).view(len(x), -1))

    formats: list[bool] = []  # noqa: RUF012


def test_a_model_that_needs_channels_first_gets_them(batch32) -> None:
    net = Flat()
    Flat.formats.clear()
    score = ProxySession(net, batch32).compute(["snip"])["snip"]
    assert Flat.formats == [False, True]
    exact = ProxySession(net.double(), (batch32[0].double(), batch32[1])).compute(["snip"])["snip"]
    assert score.value == pytest.approx(exact.value, rel=1e-5)


@pytest.mark.parametrize("name", [*EIGHT, "zico", "fisher_channel", "epe_nas", "naswot", "meco"])
def test_fp32_with_channels_last_differs_by_rounding_only(mobile_net, batch, name) -> None:
    other = batch[0].flip(2), batch[1]
    exact = ProxySession(mobile_net, batch, more_batches=[other]).compute([name])[name]
    first, second = ((images.float(), labels) for images, labels in (batch, other))
    session = ProxySession(mobile_net.float(), first, more_batches=[second])
    assert session.compute([name])[name].value == pytest.approx(exact.value, rel=2e-3)


def test_each_call_sees_the_model_as_it_is_then(conv_net, batch) -> None:
    session = ProxySession(conv_net, batch)
    before = session.compute(["snip"])
    with torch.no_grad():
        conv_net[8].weight.mul_(2.0)
    assert session.compute(["snip"]) != before


def test_runs_in_the_mode_of_the_model(conv_net, batch) -> None:
    session = ProxySession(conv_net, batch)
    trained = session.compute(["snip"])["snip"].value
    conv_net.eval()
    frozen = session.compute(["snip"])["snip"].value
    assert trained != pytest.approx(frozen, rel=1e-3)
    assert int(conv_net[1].num_batches_tracked) == 0


def test_seed_decides_what_dropout_drops(dropout_net, batch32) -> None:
    one, same, other = (
        ProxySession(dropout_net, batch32, seed=seed).compute(["snip"]) for seed in (1, 1, 2)
    )
    assert one == same != other


def test_repeated_names_and_no_names(conv_net, batch, counted_passes) -> None:
    session = ProxySession(conv_net, batch)
    calls = counted_passes(model=conv_net)
    assert list(session.compute(["params", "synflow", "synflow"])) == ["params", "synflow"]
    assert calls == ["model", "backward"]
    assert session.compute([]) == {}


def test_labels_may_be_missing_where_none_are_read(conv_net, batch) -> None:
    session = ProxySession(conv_net, (batch[0], None))
    assert session.compute(["naswot", "synflow"]).keys() == {"naswot", "synflow"}
    assert error_of(lambda: session.compute(["naswot", "snip"])) == (
        "snip needs labels, and the batch has none"
    )


def test_an_added_proxy_gets_the_quantizers(conv_net, batch, monkeypatch) -> None:
    def score(passes):
        return ProxyScore(float(passes.quantize["zero"](passes.inputs).sum()))

    proxy = Proxy("mine", "down", False, frozenset(), False, "nobody", "sum", score)
    monkeypatch.setitem(PROXIES, "mine", proxy)
    session = ProxySession(conv_net, batch, quantize={"zero": torch.zeros_like})
    assert session.compute(["mine"])["mine"] == ProxyScore(0.0, {})


def test_a_pass_of_its_own_is_seeded_and_undone(conv_net, dropout_net, batch, monkeypatch) -> None:
    def score(passes):
        for model in (passes.model, passes.reference):
            model.eval()
            with torch.no_grad():
                model[0].weight.zero_()
        return ProxyScore(float(torch.rand(())))

    proxy = Proxy("mine", "up", False, frozenset({"own"}), False, "nobody", "a draw", score)
    monkeypatch.setitem(PROXIES, "mine", proxy)
    session = ProxySession(conv_net, batch, reference=dropout_net)
    assert session.compute(["mine"]) == session.compute(["mine"])
    for model in (conv_net, dropout_net):
        assert model.training
        assert model[0].weight.abs().sum() > 0


def test_a_proxy_that_fails_before_any_pass_runs_none(quant_net, batch32, counted_passes) -> None:
    calls = counted_passes(model=quant_net)
    session = ProxySession(quant_net, batch32)
    error_of(lambda: session.compute(["snip", "sqnr"]))
    error_of(lambda: session.compute(["snip", "unknown"]))
    assert calls == []


def test_names_what_is_unknown(conv_net, batch, monkeypatch) -> None:
    table = {name: PROXIES[name] for name in ("synflow", "snip")}
    monkeypatch.setattr(predictors.zerocost.session, "PROXIES", table)
    session = ProxySession(conv_net, batch)
    assert error_of(lambda: session.compute(["synflo"])) == (
        "no proxy named 'synflo' (did you mean 'synflow'?); there are: snip, synflow"
    )
    assert error_of(lambda: session.compute(["xyz"])) == (
        "no proxy named 'xyz'; there are: snip, synflow"
    )


def test_says_that_a_text_is_no_list(conv_net, batch) -> None:
    assert error_of(lambda: ProxySession(conv_net, batch).compute("snip")) == (
        "compute takes a list of names, got the text 'snip'"
    )


def test_says_that_there_are_no_parameters(batch) -> None:
    assert error_of(lambda: ProxySession(nn.ReLU(), batch)) == "the model has no parameters"


def test_says_that_the_batch_is_empty(conv_net) -> None:
    empty = torch.zeros(0, 2, 7, 7), torch.zeros(0)
    assert error_of(lambda: ProxySession(conv_net, empty)) == (
        "the batch is empty: inputs have shape (0, 2, 7, 7)"
    )


def test_says_both_lengths(conv_net, batch) -> None:
    assert error_of(lambda: ProxySession(conv_net, (batch[0], batch[1][:5]))) == (
        "inputs and labels must be equally many, got 8 inputs and labels of shape (5,)"
    )


def test_says_that_a_batch_is_no_pair_of_tensors(conv_net, batch) -> None:
    images, labels = batch
    wrapper = "give a model of several inputs or labels a wrapper that takes one"
    assert error_of(lambda: ProxySession(conv_net, ((images, images), labels))) == (
        f"inputs must be one tensor, got tuple: {wrapper}"
    )
    assert error_of(lambda: ProxySession(conv_net, (images, [labels]))) == (
        f"labels must be one tensor, got list: {wrapper}"
    )
    assert error_of(lambda: ProxySession(conv_net, batch, more_batches=[(images[:0], None)])) == (
        "the batch is empty: inputs have shape (0, 2, 7, 7)"
    )


@pytest.mark.parametrize(
    ("score", "place"),
    [
        (ProxyScore(float("inf")), "its value is inf"),
        (ProxyScore(1.0, {"conv": float("nan")}), "conv is nan"),
    ],
)
def test_names_what_is_not_finite_in_a_score(conv_net, batch, monkeypatch, score, place) -> None:
    proxy = Proxy("mine", "up", False, frozenset(), False, "nobody", "broken", lambda _: score)
    monkeypatch.setitem(PROXIES, "mine", proxy)
    assert error_of(lambda: ProxySession(conv_net, batch).compute(["mine"])) == (
        f"mine is not finite: {place}"
    )
