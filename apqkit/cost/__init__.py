"""What networks cost: look-up tables, simulators, rooflines, counting, energy."""

from apqkit.cost.bitfusion import BitFusionCost
from apqkit.cost.builder import build_lut, prepare_folder
from apqkit.cost.compiled import CompiledCost, compile_cost
from apqkit.cost.devices import (
    DEVICES,
    Device,
    device_model,
    find_device,
    native_space,
)
from apqkit.cost.energy import EnergyCost
from apqkit.cost.lut import LookupTable, read_lut, write_lut
from apqkit.cost.lut_cost import LutCost
from apqkit.cost.network import NetworkCost
from apqkit.cost.roofline import RooflineCost

__all__ = [
    "DEVICES",
    "BitFusionCost",
    "CompiledCost",
    "Device",
    "EnergyCost",
    "LookupTable",
    "LutCost",
    "NetworkCost",
    "RooflineCost",
    "build_lut",
    "compile_cost",
    "device_model",
    "find_device",
    "native_space",
    "prepare_folder",
    "read_lut",
    "write_lut",
]
