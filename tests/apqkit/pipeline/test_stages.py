import pytest

from apqkit.config import load_config
from apqkit.pipeline import STAGES, resolved
from apqkit.pipeline.context import RunContext
from apqkit.pipeline.stages import stage_inputs, with_followers
from apqkit.types import SilentProgress

NAMES = [each.name for each in STAGES]


def affected(context, *overrides):
    """Stages whose inputs differ from those of the run."""
    changed = RunContext(resolved(load_config("smoke", overrides)), context.run, SilentProgress())
    return [
        each.name for each in STAGES if stage_inputs(context, each) != stage_inputs(changed, each)
    ]


def test_a_stage_comes_after_what_it_reads():
    for place, stage in enumerate(STAGES):
        assert set(stage.upstream) <= set(NAMES[:place])


@pytest.mark.parametrize(
    ("name", "followers"),
    [
        ("cost", ["cost", "samples", "predictor", "search", "export", "report"]),
        ("supernet", ["supernet", "samples", "predictor", "search", "export", "report"]),
        ("predictor", ["predictor", "search", "export", "report"]),
        ("report", ["report"]),
    ],
)
def test_a_stage_is_followed_by_what_builds_on_it(name, followers):
    """A new device throws away no training."""
    assert with_followers(name) == followers


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("supernet.epochs=3", "supernet"),
        ("threads=1", "supernet"),
        ("cost.batch=2", "cost"),
        ("samples.fp32=9", "samples"),
        ("predictor.coverage=0.8", "predictor"),
        ("search.verify=9", "search"),
        ("export.picks=[]", "export"),
    ],
)
def test_a_change_reaches_its_stage_and_what_follows_and_no_other(override, first, context):
    assert affected(context, override) == with_followers(first)


@pytest.mark.parametrize("override", ["seed=1", "data.limit=200", "space.options.stem=4"])
def test_a_change_of_data_or_space_reaches_everything(override, context):
    assert affected(context, override) == NAMES


def test_finetuning_is_no_input_of_any_stage(context):
    assert affected(context, "finetune.epochs=9") == []


def test_where_the_data_lie_does_not_matter(context):
    assert affected(context, 'data.path="elsewhere"') == []


def test_inputs_are_what_the_run_recorded(context):
    for stage in STAGES:
        assert stage_inputs(context, stage) == context.run.stages[stage.name].inputs
