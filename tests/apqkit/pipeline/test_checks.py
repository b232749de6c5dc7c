import pytest

from apqkit.config import load_config
from apqkit.errors import ConfigError, RunError
from apqkit.pipeline.checks import check_machine, check_names


def test_shipped_names_are_all_known():
    for name in ("smoke", "digits", "fashion-mnist"):
        check_names(load_config(name))


def test_a_device_that_torch_does_not_have_matters_only_before_training():
    config = load_config("smoke", ["supernet.torch_device=meta"])  # it computes nothing
    with pytest.raises(ConfigError) as caught:
        check_machine(config, {"supernet", "samples"})
    assert str(caught.value) == (
        "supernet.torch_device 'meta' cannot be used: "
        "Tensor.item() cannot be called on meta tensors"
    )
    check_machine(config, {"samples", "search"})


def test_a_storage_matters_only_before_the_search(tmp_path):
    config = load_config("smoke", [f'search.storage="sqlite:///{tmp_path}/no/study.db"'])
    with pytest.raises(RunError) as caught:
        check_machine(config, {"search"})
    assert str(caught.value).startswith(f"the study in sqlite:///{tmp_path}/no/study.db cannot be")
    assert "\n" not in str(caught.value)
    check_machine(config, {"export"})


def test_a_storage_that_opens_is_accepted(tmp_path):
    config = load_config("smoke", [f'search.storage="sqlite:///{tmp_path}/study.db"'])
    check_machine(config, {"search"})
