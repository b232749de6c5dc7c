"""Stage predictor: fp32 and transferred predictor, scored out of fold beside their baselines."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apqkit.cost.network import NetworkCost
from apqkit.pipeline.context import RunContext
from apqkit.pipeline.ranking import (
    Measured,
    Ranking,
    fit_base,
    fit_rows,
    fit_with_proxies,
    fp32_rows,
    measured_samples,
    mixed_rows,
    proxy_gain,
    reordered,
)
from apqkit.pipeline.sample_budget import seconds_a_sample, write_budget
from apqkit.pipeline.zero_samples import ProxyRanking, write_sensitivities
from apqkit.prediction import AccuracyModel, Rows, score_rows
from apqkit.run import write_json
from apqkit.sampling import same_architecture
from apqkit.types import FloatArray, IntArray
from predictors import kendall_tau, save_predictor

__all__ = ["CURVE_FILE", "DECISION_FILE", "SCORES_FILE", "run_predictor_stage"]

SCORES_FILE = "scores.json"
CURVE_FILE = "learning_curve.json"
DECISION_FILE = "proxies.json"
_CURVE_SHARES = (0.25, 0.5)
_CURVE_REPEATS = 3


def run_predictor_stage(context: RunContext, folder: Path) -> None:
    """Fits and scores the predictors and decides which proxies help.

    Without samples there is nothing to fit: what formats do to layers is measured instead.
    """
    write_sensitivities(context)
    if not context.config.samples.fp32:
        _prepare_proxies(context, folder)
        return
    with context.progress.task("predictor", 4) as advance:
        base = fit_base(context)
        advance(1)
        mixed = measured_samples(context, "mixed")
        decision = _choose_proxies(context, base, mixed)
        write_json(folder / DECISION_FILE, decision)
        advance(1)
        ranking = Ranking.fitted(context, base, mixed, decision["used"])
        write_json(folder / SCORES_FILE, _scores(context, base, ranking, mixed))
        write_budget(context, folder)
        advance(1)
        write_json(folder / CURVE_FILE, _learning_curve(context, base, mixed))
        advance(1)
    _save(context, folder, base, ranking.quick)


def _prepare_proxies(context: RunContext, folder: Path) -> None:
    used = list(context.config.predictor.proxies)
    write_json(folder / DECISION_FILE, {"used": used, "tried": {}})
    write_json(folder / SCORES_FILE, {})
    write_budget(context, folder)
    write_json(folder / CURVE_FILE, [])


def _choose_proxies(context: RunContext, base: AccuracyModel, mixed: Measured) -> dict[str, Any]:
    """Returns the proxies that lower the error out of fold by more than its standard error.

    Each is tried alone; those that help must also help together, else the best one is kept. Where
    they are combined by rank, all are used.
    """
    without = Ranking.fitted(context, base, mixed, ()).quick
    names = context.config.predictor.proxies
    context.proxies.columns(mixed.picks, names)  # in shared passes

    def gain_of(chosen: Sequence[str]) -> tuple[float, float]:
        model = fit_with_proxies(context, base, mixed, chosen)
        return proxy_gain(mixed.accuracy, without.out_of_fold, model.out_of_fold)

    gains = {name: gain_of([name]) for name in names}
    used = [name for name, (gain, error) in gains.items() if gain > error]
    if context.config.predictor.combine == "ranks":
        used = list(names)
    elif len(used) > 1:
        gain, error = gain_of(used)
        best = max(used, key=lambda name: gains[name][0])
        used = used if gain > max(error, gains[best][0]) else [best]
    tried = {}
    for name, (gain, error) in gains.items():
        column = context.proxies.columns(mixed.picks, [name])[:, 0]
        tried[name] = {
            "gain": gain,
            "standard_error": error,
            "tau_alone": kendall_tau(mixed.accuracy, column),
            "used": name in used,
        }
        context.say(_proxy_verdict(name, tried[name], used, len(mixed.accuracy)))
    return {"used": used, "tried": tried}


def _proxy_verdict(name: str, tried: Mapping[str, Any], used: Sequence[str], rows: int) -> str:
    """Returns why a proxy is kept or dropped."""
    gain, error = tried["gain"], tried["standard_error"]
    verdict = f"proxy {name} is {'kept' if tried['used'] else 'dropped'}: "
    if gain == error == 0.0:
        return verdict + (
            f"with {rows} mixed samples the fp32 predictor is moved to their level and nothing "
            f"more is learned, so that no column can help"
        )
    found = (
        f"as a column it lowers the squared error out of fold by {gain:.5f} "
        f"(standard error {error:.5f}, logit scale, {rows} rows)"
    )
    redundant = gain > error and name not in used
    return verdict + found + ("; it adds nothing to those kept" if redundant else "")


def _scores(
    context: RunContext, base: AccuracyModel, ranking: Ranking, mixed: Measured
) -> dict[str, Any]:
    fp32 = fp32_rows(context)
    fp32_picks = measured_samples(context, "fp32").picks
    rows = mixed_rows(context, mixed)
    seen = same_architecture(context.space, mixed.picks, fp32_picks)
    scratch = fit_rows(context, None, rows)
    predictions = {
        "transferred": ranking.quick.out_of_fold,
        "from scratch": scratch.out_of_fold,
        "fp32 predictor alone": ranking.fp32_score(mixed.picks),
    }
    counts = _counts(context, mixed.picks, ("bops", "macs", "params"))
    counts["proxies alone, no samples"] = np.exp(
        ProxyRanking(context, ()).quick_score(mixed.picks)
    )
    if ranking.full is not None:
        predictions = {"transferred with proxies": ranking.full.out_of_fold, **predictions}
    names = context.config.predictor.proxies
    if names:
        columns = context.proxies.columns(mixed.picks, names)
        by_rank = _reordered(ranking.quick.out_of_fold, names, columns)
        predictions["transferred and proxies by rank"] = by_rank
    kept = np.isfinite(np.stack(list(predictions.values()))).all(axis=0)
    kept_rows = Rows(rows.features[kept], rows.accuracy[kept], rows.groups[kept])
    chosen = getattr(base.predictor, "chosen_", context.config.predictor.name)
    return {
        "split": "5 folds, grouped by architecture, predictions out of fold; "
        f"{int(seen.sum())} mixed rows have an architecture that the fp32 predictor saw; "
        "proxies were chosen on these rows",
        "interval": "95 % bootstrap over architectures",
        "seconds_a_sample": seconds_a_sample(context),
        "fp32": {
            "rows": len(fp32.accuracy),
            "predictor": chosen,
            "scores": score_rows(
                fp32,
                {"predictor": base.out_of_fold},
                _counts(context, fp32_picks, ("macs", "params")),
            ),
        },
        "mixed": {
            "rows": int(kept.sum()),
            "residual_used": bool(ranking.quick.predictor.uses_residual_),
            "half_width": ranking.half_width,
            "scores": score_rows(
                kept_rows,
                {name: each[kept] for name, each in predictions.items()},
                {name: each[kept] for name, each in counts.items()},
            ),
        },
    }


def _reordered(predicted: FloatArray, names: Sequence[str], columns: FloatArray) -> FloatArray:
    """Returns predictions reordered by proxies, NaN where there is no prediction."""
    known = np.isfinite(predicted)
    result = np.full(len(predicted), np.nan)
    result[known] = reordered(predicted[known], names, columns[known])
    return result


def _counts(context: RunContext, picks: IntArray, names: tuple[str, ...]) -> dict[str, FloatArray]:
    costs = NetworkCost().cost(context.space.network(picks))
    return {name: costs[name] for name in names}


def _learning_curve(
    context: RunContext, base: AccuracyModel, mixed: Measured
) -> list[dict[str, float]]:
    """Tau on held-out rows against the number of mixed samples, transferred and from scratch."""
    rows = mixed_rows(context, mixed)
    curve = []
    for share in _CURVE_SHARES:
        count = max(4, round(share * len(rows.accuracy)))
        taus: dict[str, list[float]] = {"transferred": [], "from_scratch": []}
        for repeat in range(_CURVE_REPEATS):
            rng = np.random.default_rng([context.config.seed, 20, repeat])
            place = rng.permutation(int(rows.groups.max()) + 1)[rows.groups]
            order = np.argsort(place, kind="stable")  # architectures stay together
            first_unseen = int(np.searchsorted(place[order], place[order[count - 1]], "right"))
            train, test = order[:count], order[first_unseen:]
            part = Rows(rows.features[train], rows.accuracy[train], rows.groups[train])
            for name, prior in (("transferred", base), ("from_scratch", None)):
                predicted = fit_rows(context, prior, part).predict(rows.features[test])
                taus[name].append(kendall_tau(rows.accuracy[test], predicted))
        means = {name: float(np.nanmean(each)) for name, each in taus.items()}
        spread = {f"{name}_sd": float(np.nanstd(each, ddof=1)) for name, each in taus.items()}
        curve.append({"mixed_samples": count, **means, **spread})
    return curve


def _save(context: RunContext, folder: Path, base: AccuracyModel, mixed: AccuracyModel) -> None:
    fp32 = fp32_rows(context)
    rows = mixed_rows(context, measured_samples(context, "mixed"))
    save_predictor(folder / "fp32", base.predictor, fp32.features, fp32.accuracy, fp32.groups)
    save_predictor(
        folder / "mixed",
        mixed.predictor,
        rows.features,
        rows.accuracy,
        rows.groups,
        base_rows=(fp32.features, fp32.accuracy, fp32.groups),
    )
