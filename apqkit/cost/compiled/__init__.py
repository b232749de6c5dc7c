"""Costs straight from picks: what each row of a network table adds is learned once."""

from apqkit.cost.compiled.lookups import CompiledCost, compile_cost

__all__ = ["CompiledCost", "compile_cost"]
