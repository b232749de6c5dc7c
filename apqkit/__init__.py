"""apqkit: joint search of network architecture, pruning and number formats."""

__version__ = "0.1.0"
