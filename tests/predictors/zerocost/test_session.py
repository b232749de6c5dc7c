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
