"""Search: dominance, vectorised evolution, strategies, and the loop that measures."""

from apqkit.search.evolution import Evolved, evolve
from apqkit.search.problem import MutationRates, SearchSettings

__all__ = ["Evolved", "MutationRates", "SearchSettings", "evolve"]
