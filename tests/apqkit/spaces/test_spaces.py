import pytest

from apqkit.config import SpaceConfig
from apqkit.errors import ConfigError, UnknownNameError
from apqkit.spaces import SPACES, build_space, space_options
from apqkit.spaces.mobilenet import MobileNetOptions, MobileNetSpace


def test_a_space_is_built_by_name():
    space = build_space(SpaceConfig(), (1, 8, 8), 10)
    assert isinstance(space, MobileNetSpace)
    assert space.name == "mobilenet"


def test_options_are_filled_in():
    options = space_options(SpaceConfig(options={"stem": 4}))
    assert options == MobileNetOptions(stem=4)
    assert options.head == MobileNetOptions().head


def test_an_unknown_space_is_named():
    with pytest.raises(UnknownNameError) as caught:
        build_space(SpaceConfig(name="mobilnet"), (1, 8, 8), 10)
    assert str(caught.value) == (
        f"no space named 'mobilnet' (did you mean 'mobilenet'?); "
        f"there are: {', '.join(sorted(SPACES))}"
    )


def test_an_unknown_option_is_named_with_its_path():
    with pytest.raises(ConfigError) as caught:
        space_options(SpaceConfig(options={"heads": 4}))
    assert str(caught.value) == (
        "unknown key 'space.options.heads' (did you mean 'space.options.head'?); "
        f"allowed: {', '.join(MobileNetOptions.model_fields)}"
    )


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        ({"kernels": [3, 4]}, "kernels.1 must be odd, got int 4"),
        ({"kernels": []}, "kernels must be given at least one entry, got list []"),
        ({"width_shares": []}, "width_shares must be given at least one entry, got list []"),
        ({"width_shares": [0.0]}, "width_shares.0 must be greater than 0, got float 0.0"),
        ({"width_shares": [1.5]}, "width_shares.0 must be less than or equal to 1, got float 1.5"),
        (
            {"width_shares": [float("inf")]},
            "width_shares.0 must be a finite number, got float inf",
        ),
        ({"depth": 0}, "depth must be greater than or equal to 1, got int 0"),
        ({"width": "8"}, "width must be integer, got str '8'"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(stage, text):
    options = {"stages": [{"width": 8, "depth": 2, **stage}]}
    with pytest.raises(ConfigError) as caught:
        space_options(SpaceConfig(options=options))
    assert str(caught.value) == f"space.options.stages.0.{text}"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"expand": 0.0}, "expand must be greater than 0, got float 0.0"),
        ({"expand": float("inf")}, "expand must be a finite number, got float inf"),
        (
            {"depthwise_formats": []},
            "depthwise_formats must be given at least one entry, got list []",
        ),
        ({"pool": 0}, "pool must be greater than or equal to 1, got int 0"),
        ({"hidden_choices": 0}, "hidden_choices must be greater than or equal to 1, got int 0"),
    ],
)
def test_an_option_out_of_range_is_refused(options, text):
    with pytest.raises(ConfigError) as caught:
        space_options(SpaceConfig(options=options))
    assert str(caught.value) == f"space.options.{text}"
