"""Whatever stands in the table is tested here."""

import copy
import dataclasses
import math
import random
from typing import get_args

import numpy as np
import pytest
import torch

from predictors.zerocost import PROXIES, Need, ProxyError, ProxySession

every_proxy = pytest.mark.parametrize("name", PROXIES)


def hooks(model):
    return [
        (
            list(module._forward_hooks),
            list(module._forward_pre_hooks),
            list(module._backward_hooks),
        )
        for module in model.modules()
    ]


def snapshot(model):
    """Everything about a model and the generators, comparable with ==."""
    return {
        "values": {
            name: each.tolist() for name, each in copy.deepcopy(model.state_dict()).items()
        },
        "tensors": [id(each) for each in [*model.parameters(), *model.buffers()]],
        "types": [each.dtype for each in [*model.parameters(), *model.buffers()]],
        "grads": [
            None if each.grad is None else each.grad.tolist() for each in model.parameters()
        ],
        "frozen": [each.requires_grad for each in model.parameters()],
        "modes": [each.training for each in model.modules()],
        "hooks": hooks(model),
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "python": random.getstate(),
    }


def prepare(model):
    """Gives the model a past: a hook, a gradient, a frozen bias, a mixed mode."""
    model[0].register_forward_hook(lambda module, inputs, outputs: None)
    model[-1].weight.grad = torch.ones_like(model[-1].weight)
    model[-1].bias.requires_grad_(False)
    model[-2].eval()
    return model


@pytest.fixture
def models(quant_net, quant_twin, dropout_net):
    return {"quantized": prepare(quant_net), "twin": prepare(quant_twin), "fp32": dropout_net}


def session_of(models, batch, kind="quantized"):
    images, labels = batch
    return ProxySession(
        models[kind],
        batch,
        reference=models["twin"],
        more_batches=[(images.flip(0) + 0.1, labels)],
    )


def compute(models, batch, name, kind="quantized"):
    return session_of(models, batch, kind).compute([name])[name]


def test_names_and_facts_are_complete() -> None:
    for name, proxy in PROXIES.items():
        assert proxy.name == name
        assert proxy.direction in ("up", "down")
        assert proxy.needs <= set(get_args(Need))
        assert proxy.needs_labels or not proxy.needs & {"L", "H", "batches"}
        assert proxy.source
        assert proxy.convention
        with pytest.raises(dataclasses.FrozenInstanceError):
            proxy.name = "other"


@every_proxy
@pytest.mark.parametrize("kind", ["quantized", "fp32"])
@pytest.mark.parametrize("training", [True, False])
def test_is_finite_and_leaves_the_models_alone(models, batch32, name, kind, training) -> None:
    if not training:
        models[kind].eval()
    before = [snapshot(each) for each in models.values()]
    score = compute(models, batch32, name, kind)
    assert [snapshot(each) for each in models.values()] == before
    assert math.isfinite(score.value)
    assert all(math.isfinite(each) for each in score.layers.values())


@every_proxy
def test_is_the_same_again_whatever_the_random_state(models, batch32, name) -> None:
    first = compute(models, batch32, name, "fp32")
    torch.manual_seed(77)
    assert compute(models, batch32, name, "fp32") == first


@every_proxy
def test_is_the_same_beside_all_others(models, batch32, name) -> None:
    together = session_of(models, batch32, "fp32").compute(PROXIES)[name]
    alone = compute(models, batch32, name, "fp32")
    assert together.value == pytest.approx(alone.value, rel=1e-5)
    assert together.layers == pytest.approx(alone.layers, rel=1e-4)


@pytest.mark.parametrize("name", [name for name, proxy in PROXIES.items() if proxy.needs])
@pytest.mark.parametrize("layer", [0, 1, 4])
def test_leaves_the_models_alone_after_an_error(models, batch32, name, layer) -> None:
    def stop(module, inputs, outputs):
        raise RuntimeError("stop")

    for model in (models["quantized"], models["twin"]):
        model[layer].register_forward_hook(stop)
    before = [snapshot(each) for each in models.values()]
    with pytest.raises(RuntimeError, match="stop"):
        compute(models, batch32, name)
    assert [snapshot(each) for each in models.values()] == before


@every_proxy
def test_runs_no_pass_that_it_does_not_declare(models, batch32, name, counted_passes) -> None:
    needs = PROXIES[name].needs
    calls = counted_passes(model=models["quantized"], reference=models["twin"])
    compute(models, batch32, name)
    if "own" not in needs:
        further = int("batches" in needs)
        assert calls.count("model") == int(bool(needs & {"L", "F", "J", "H"})) + further
        assert calls.count("backward") == len(needs & {"L", "J", "H"}) + further
        assert calls.count("reference") == int("reference" in needs)


TROUBLES = {
    "NaN in the images": lambda net, images, labels: (images * float("nan"), labels),
    "infinite images": lambda net, images, labels: (images.fill_(float("inf")), labels),
    "constant images": lambda net, images, labels: (images.zero_(), labels),
    "one sample": lambda net, images, labels: (images[:1], labels[:1]),
    "alike samples": lambda net, images, labels: (images[:1].repeat(8, 1, 1, 1), labels),
    "one class": lambda net, images, labels: (images, labels * 0),
    "no labels": lambda net, images, labels: (images, None),
    "frozen": lambda net, images, labels: (net.requires_grad_(False), images, labels)[1:],
    "NaN in a weight": lambda net, images, labels: (
        net[0].weight.data.fill_(float("nan")),
        images,
        labels,
    )[1:],
    "zero weights": lambda net, images, labels: (net[0].weight.data.zero_(), images, labels)[1:],
}


def score_or_message(models, batch, name):
    try:
        return session_of(models, batch, "fp32").compute([name])[name]
    except ProxyError as error:
        return str(error)


@every_proxy
@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_is_finite_or_says_in_one_line_what_is_wrong(models, batch32, name, trouble) -> None:
    batch = trouble(models["fp32"], *(each.clone() for each in batch32))
    before = snapshot(models["fp32"])
    found = score_or_message(models, batch, name)
    if isinstance(found, str):
        assert found
        assert "\n" not in found
    else:
        assert math.isfinite(found.value)
        assert all(math.isfinite(each) for each in found.layers.values())
    assert str(snapshot(models["fp32"])) == str(before)  # NaN differs from itself


@every_proxy
def test_sees_functions_in_place_and_shared_layers(mobile_net, shared_net, batch, name) -> None:
    for net in (mobile_net, shared_net):
        models = {"quantized": net, "twin": net}
        if name in ("zen", "sqnr"):  # without a map of features; against itself
            continue
        score = compute(models, batch, name)
        assert math.isfinite(score.value)
        assert score.layers or name in ("jacov", "epe_nas")


SUMS = [
    *("params", "flops", "l2_norm", "grad_norm", "snip", "plain", "fisher", "fisher_channel"),
    *("grasp", "zico", "meco"),
]


@pytest.mark.parametrize("name", SUMS)
def test_layers_sum_to_the_value_where_the_convention_says_so(models, batch32, name) -> None:
    assert "they sum to the value" in PROXIES[name].convention
    score = compute(models, batch32, name, "fp32")
    assert math.fsum(score.layers.values()) == pytest.approx(score.value, rel=1e-12)


@every_proxy
def test_says_how_layers_relate_to_the_value(name) -> None:
    words = ("layers: ", "no layers")
    assert sum(each in PROXIES[name].convention for each in words) == 1
