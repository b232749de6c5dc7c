"""What can be named in a configuration, with a few words on each."""

from collections.abc import Callable, Mapping

from apqkit.config import shipped_configs

__all__ = ["KINDS"]


def _spaces() -> dict[str, str]:
    from apqkit.spaces import SPACES

    return _first_lines({name: each.build for name, each in SPACES.items()})


def _formats() -> dict[str, str]:
    from apqkit.formats import FORMATS, NumberFormat

    def words(each: NumberFormat) -> str:
        blocks = f" in blocks of {each.block_size}, not in spaces" if each.block_size else ""
        return f"{each.bits} bits{blocks}, largest value {each.max_value:g}"

    return {name: words(each) for name, each in FORMATS.items() if each.signed}


def _proxies() -> dict[str, str]:
    from predictors.zerocost import PROXIES

    return {
        name: f"{each.source}; {'larger' if each.direction == 'up' else 'smaller'} is better"
        for name, each in PROXIES.items()
    }


def _predictors() -> dict[str, str]:
    from predictors import PREDICTORS

    return _first_lines(PREDICTORS)


def _devices() -> dict[str, str]:
    from apqkit.cost import DEVICES

    return {name: each.says for name, each in DEVICES.items()}


def _tables() -> dict[str, str]:
    from apqkit.cost.importers import IMPORTERS

    return {name: each.says for name, each in IMPORTERS.items()}


def _datasets() -> dict[str, str]:
    from apqkit.data import DATASETS

    return _first_lines(DATASETS)


def _strategies() -> dict[str, str]:
    from apqkit.search.strategies import STRATEGIES

    return _first_lines(STRATEGIES)


def _first_lines(table: Mapping[str, object]) -> dict[str, str]:
    return {name: (each.__doc__ or "").partition("\n")[0] for name, each in table.items()}


def _configs() -> dict[str, str]:
    return {
        name: text.partition("\n")[0].removeprefix("# ")
        for name, text in shipped_configs().items()
    }


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "configs": _configs,
    "datasets": _datasets,
    "devices": _devices,
    "formats": _formats,
    "predictors": _predictors,
    "proxies": _proxies,
    "spaces": _spaces,
    "strategies": _strategies,
    "tables": _tables,
}
"""Kinds of things that ``apqkit list`` shows."""
