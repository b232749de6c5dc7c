"""Networks behind the predictors that are trained in torch; only these modules import it.

Predictors import this package when they are fitted, never when they are imported.
"""
