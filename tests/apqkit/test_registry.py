import pytest

from apqkit.errors import UnknownNameError
from apqkit.registry import did_you_mean, lookup

PROXIES = {"synflow": 1, "snip": 2, "jacov": 3}


def test_lookup_returns_the_entry_itself():
    entry = object()
    assert lookup({"int4": entry}, "int4", "format") is entry


def test_an_unknown_name_lists_what_there_is_in_order():
    with pytest.raises(UnknownNameError) as caught:
        lookup(PROXIES, "zico", "proxy")
    assert str(caught.value) == "no proxy named 'zico'; there are: jacov, snip, synflow"


def test_a_misspelt_name_gets_a_proposal():
    with pytest.raises(UnknownNameError) as caught:
        lookup(PROXIES, "synflo", "proxy")
    assert str(caught.value) == (
        "no proxy named 'synflo' (did you mean 'synflow'?); there are: jacov, snip, synflow"
    )


def test_the_closest_name_is_proposed():
    assert did_you_mean("synflew", ["snip", "synflow", "synflex"]) == (
        " (did you mean 'synflow'?)"
    )


def test_a_prefix_stands_before_the_proposal():
    assert did_you_mean("trails", ["trials"], prefix="search.") == (
        " (did you mean 'search.trials'?)"
    )


def test_nothing_is_proposed_for_a_name_unlike_all_others():
    assert did_you_mean("zzz", PROXIES) == ""
    assert did_you_mean("synflow", []) == ""
