"""Proxies that are formulas, found by evolution on measured bit settings of small networks.

A formula (:class:`Program`) gives one number for each layer and format; a setting's score is the
sum over its layers. :func:`evolve` finds one on tables of measured settings.
"""

from predictors.zerocost.evolution.evolving import BASELINES, EvolutionResult, evolve
from predictors.zerocost.evolution.expressions import Binary, Expression, Input, Unary
from predictors.zerocost.evolution.layer_inputs import LayerInputs
from predictors.zerocost.evolution.network_inputs import inputs_of
from predictors.zerocost.evolution.program import Program, load_program, save_program
from predictors.zerocost.evolution.ranking import Ranking, rank_settings
from predictors.zerocost.evolution.setting_table import (
    SettingTable,
    read_setting_table,
    write_setting_table,
)

__all__ = [
    "BASELINES",
    "Binary",
    "EvolutionResult",
    "Expression",
    "Input",
    "LayerInputs",
    "Program",
    "Ranking",
    "SettingTable",
    "Unary",
    "evolve",
    "inputs_of",
    "load_program",
    "rank_settings",
    "read_setting_table",
    "save_program",
    "write_setting_table",
]
