import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apqkit.errors import CalibrationError, RunError, TrainingError
from apqkit.quant.calibration import calibrate
from apqkit.quant.layers import QuantConv
from apqkit.quant.preparation import (
    LayerFormats,
    fold_batch_norms,
    keep_batch_norms,
    prepare,
)
from apqkit.quant.weights import QuantScheme
from apqkit.spaces.base import largest_picks
from apqkit.training.checkpoint import load_tensors
from apqkit.training.evaluate import evaluate
from apqkit.training.finetuning import finetune
from apqkit.types import SilentProgress


@pytest.fixture
def supernet(space):
    return space.supernet(0)


@pytest.fixture
def layers(space):
    return space.network(largest_picks(space.dims)).with_formats("int4", "int8").layers()


@pytest.fixture
def tune(splits):
    def run(model, config, *, checkpoint=None, progress=None):
        return finetune(
            model,
            splits,
            config,
            checkpoint_path=checkpoint,
            progress=progress or SilentProgress(),
        )

    return run


def test_only_the_candidates_own_copy_is_trained(
    supernet, layers, tune, make_config, same_tensors
):
    before = {name: each.clone() for name, each in supernet.state_dict().items()}
    model = supernet.extract(layers)
    weights = {name: each.detach().clone() for name, each in model.named_parameters()}
    history = tune(model, make_config())
    assert [(epoch.phase, epoch.number) for epoch in history] == [
        ("finetune", 1), ("finetune", 2), ("finetune", 3),
    ]  # fmt: skip
    assert same_tensors(before, supernet.state_dict())
    for name, each in model.named_parameters():
        assert not torch.equal(each, weights[name]), name


def test_it_teaches_the_quantized_network(supernet, layers, splits, tune, make_config):
    model = supernet.extract(layers)
    calibration = splits.calibration_images(96).images()
    calibrate(model, calibration)
    before = evaluate(model, splits.validation).mean()
    history = tune(model, make_config(finetune={"epochs": 60, "learning_rate": 1e-2}))
    assert history[-1].losses["labels"] < 0.9 * history[0].losses["labels"]
    assert model.training
    calibrate(model, calibration)
    after = evaluate(model, splits.validation).mean()
    assert after > max(0.35, before + 0.2)


def test_the_first_loss_is_that_of_the_quantized_network(
    supernet, layers, splits, tune, make_config
):
    config = make_config(
        data={"augment_shift": 0, "augment_noise": 0.0},
        supernet={"batch_size": 96, "label_smoothing": 0.1},
        finetune={"epochs": 1},
    )
    ((losses),) = [each.losses for each in tune(supernet.extract(layers), config)]
    model = supernet.extract(layers).train()
    log_shares = model(splits.train.images()).log_softmax(dim=1)
    smoothed = F.one_hot(splits.train.targets, 10) * 0.9 + 0.1 / 10
    expected = -(smoothed * log_shares).sum(dim=1).mean().item()
    assert losses == {"labels": pytest.approx(expected, rel=1e-4)}


def test_the_same_seed_makes_the_same_weights(supernet, layers, tune, make_config, same_tensors):
    models = [supernet.extract(layers) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        tune(model, make_config(seed=seed))
    first, second, other = (model.state_dict() for model in models)
    assert same_tensors(first, second)
    assert not same_tensors(first, other)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_killed_finetuning_goes_on_bit_for_bit(
    epochs, supernet, layers, tune, make_config, killing, tmp_path, same_tensors
):
    progress, killed = killing
    straight = supernet.extract(layers)
    history = tune(straight, make_config())
    with pytest.raises(killed):
        tune(
            supernet.extract(layers),
            make_config(),
            checkpoint=tmp_path / "checkpoint.safetensors",
            progress=progress(epochs),
        )
    (path,) = tmp_path.iterdir()
    assert path.name == "checkpoint.safetensors"
    assert len(load_tensors(path, "")[1]["losses"]) == epochs
    resumed = supernet.extract(layers)
    assert tune(resumed, make_config(), checkpoint=tmp_path / "checkpoint.safetensors") == history
    assert same_tensors(straight.state_dict(), resumed.state_dict())


def test_a_truncated_checkpoint_names_itself_and_the_cure(
    supernet, layers, tune, make_config, tmp_path
):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"")
    with pytest.raises(RunError) as caught:
        tune(
            supernet.extract(layers), make_config(), checkpoint=tmp_path / "checkpoint.safetensors"
        )
    assert str(caught.value) == (
        f"{path} is truncated or was not written by apqkit; delete the file and finetune again"
    )


@pytest.mark.parametrize("mode", ["freeze", "fold"])
def test_statistics_of_batch_norms_can_stand_still(
    mode, supernet, layers, splits, tune, make_config
):
    model = supernet.extract(layers)
    images = splits.calibration_images(96).images()
    calibrate(model, images)
    convs = [each for each in model.modules() if isinstance(each, QuantConv)]
    before = [(each.mean.clone(), each.gamma.detach().clone()) for each in convs]
    tune(model, make_config(finetune={"batch_norm": mode}))
    calibrate(model, images)
    for layer, (mean, gamma) in zip(convs, before, strict=True):
        if mode == "freeze":
            assert torch.equal(layer.mean, mean)
            assert not torch.equal(layer.gamma, gamma)
        else:
            assert not layer.mean.any()
            assert torch.equal(layer.gamma, torch.ones_like(gamma))


def test_folding_changes_nothing_but_what_is_trained(supernet, layers, splits):
    images = splits.calibration_images(96).images()
    models = [supernet.extract(layers) for _ in range(2)]
    for model in models:
        calibrate(model, images)
        keep_batch_norms(model)
    fold_batch_norms(models[1])
    kept, folded = (model.train()(images) for model in models)
    assert torch.allclose(kept, folded, atol=1e-4)
    assert sum(p.requires_grad for p in models[1].parameters()) < sum(
        p.requires_grad for p in models[0].parameters()
    )


@pytest.mark.parametrize("mode", ["freeze", "fold"])
def test_statistics_that_are_not_there_cannot_stand_still(
    mode, supernet, layers, tune, make_config
):
    with pytest.raises(CalibrationError) as caught:
        tune(supernet.extract(layers), make_config(finetune={"batch_norm": mode}))
    assert str(caught.value) == "stem has no statistics yet: call calibrate first"


def test_diverging_training_names_the_rate_to_lower(supernet, layers, tune, make_config, poison):
    model = supernet.extract(layers)
    with pytest.raises(TrainingError) as caught:
        tune(model, make_config(), progress=poison(model, 2))
    assert str(caught.value) == (
        "s0.b0.expand.input holds 8192 of 8192 values that are not finite, "
        "in epoch 3 of phase finetune: "
        "lower finetune.learning_rate or supernet.clip_norm"
    )


def test_learned_steps_train_without_decay(splits, make_config):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    scheme = QuantScheme(weight_training="lsq", activation_training="lsq")
    model = prepare(net, LayerFormats("int4", "int4"), scheme=scheme)
    with pytest.raises(CalibrationError) as caught:
        finetune(model, splits, make_config())
    assert str(caught.value) == (
        "0.input does not know its range yet: call calibrate before training"
    )
    images = splits.calibration_images(96).images()
    calibrate(model, images)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "log_step" in n}
    finetune(model, splits, make_config(supernet={"weight_decay": 1.0, "batch_size": 64}))
    for name, each in model.named_parameters():
        if name in before:
            assert (each - before[name]).abs().max() < 0.3
    calibrate(model, images)
