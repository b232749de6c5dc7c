"""Whatever stands in the table is tested here."""

import copy
import dataclasses
import math
import random

import numpy as np
import pytest
import torch

from predictors.zerocost import PROXIES, ProxySession

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


def compute(models, batch, name, kind="quantized"):
    session = ProxySession(models[kind], batch, reference=models["twin"])
    return session.compute([name])[name]


def test_names_and_facts_are_complete() -> None:
    for name, proxy in PROXIES.items():
        assert proxy.name == name
        assert proxy.direction in ("up", "down")
        assert proxy.needs <= {"L", "F", "own", "reference"}
        assert proxy.needs_labels == ("L" in proxy.needs)
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
    session = ProxySession(models["fp32"], batch32, reference=models["twin"])
    assert session.compute(PROXIES)[name] == compute(models, batch32, name, "fp32")


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
        assert calls.count("model") == int(bool(needs & {"L", "F"}))
        assert calls.count("backward") == int("L" in needs)
        assert calls.count("reference") == int("reference" in needs)
