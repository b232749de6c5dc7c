"""predictors: accuracy predictors, transfer, ranking metrics and zero-cost proxies."""
