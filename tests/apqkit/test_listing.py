import pytest

from apqkit.config import shipped_configs
from apqkit.cost import DEVICES
from apqkit.cost.importers import IMPORTERS
from apqkit.data import DATASETS
from apqkit.errors import UnknownNameError
from apqkit.formats import FORMATS
from apqkit.listing import KINDS
from apqkit.registry import lookup
from apqkit.search.strategies import STRATEGIES
from apqkit.spaces import SPACES
from predictors import PREDICTORS
from predictors.zerocost import PROXIES

TABLES = {
    "configs": shipped_configs(),
    "datasets": DATASETS,
    "devices": DEVICES,
    "formats": [name for name, each in FORMATS.items() if each.signed],
    "predictors": PREDICTORS,
    "proxies": PROXIES,
    "spaces": SPACES,
    "strategies": STRATEGIES,
    "tables": IMPORTERS,
}


def test_every_kind_is_listed():
    assert list(KINDS) == list(TABLES)


@pytest.mark.parametrize("kind", TABLES)
def test_everything_of_a_kind_is_listed_in_one_line_each(kind):
    listed = KINDS[kind]()
    assert list(listed) == list(TABLES[kind])
    for says in listed.values():
        assert says
        assert "\n" not in says


def test_formats_say_how_wide_they_are_and_how_far_they_reach():
    listed = KINDS["formats"]()
    assert listed["int4"] == "4 bits, largest value 7"
    assert listed["fp8_e4m3"] == "8 bits, largest value 448"


def test_proxies_say_which_way_is_better():
    for name, says in KINDS["proxies"]().items():
        better = "larger" if PROXIES[name].direction == "up" else "smaller"
        assert says == f"{PROXIES[name].source}; {better} is better"


def test_configurations_say_their_first_line():
    first = shipped_configs()["smoke"].splitlines()[0]
    assert f"# {KINDS['configs']()['smoke']}" == first


@pytest.mark.parametrize(("kind", "table"), [("datasets", DATASETS), ("strategies", STRATEGIES)])
def test_a_plug_in_without_words_is_listed_without_words(monkeypatch, kind, table):
    monkeypatch.setitem(table, "mine", lambda config: None)
    assert KINDS[kind]()["mine"] == ""


def test_an_unknown_kind_lists_those_there_are():
    with pytest.raises(UnknownNameError) as caught:
        lookup(KINDS, "format", "kind of thing to list")
    assert str(caught.value) == (
        "no kind of thing to list named 'format' (did you mean 'formats'?); there are: configs, "
        "datasets, devices, formats, predictors, proxies, spaces, strategies, "
        "tables"
    )
