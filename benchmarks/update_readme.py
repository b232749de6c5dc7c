"""Writes the figures of ``results/*.json`` into the README, between its markers.

    python benchmarks/update_readme.py

A test renders the same text and compares, so the README quotes measured figures only.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recording import RESULTS

__all__ = ["SECTIONS", "filled", "main"]

_README = Path(__file__).parent.parent / "README.md"
_JOBS = ("digits", "fashion-mnist")
_SHOWN_MEMBERS = 8
_FEW_NETWORKS = 3  # say nothing about a correlation
_PREDICTORS = (
    "transferred with proxies",
    "transferred",
    "from scratch",
    "fp32 predictor alone",
    "bops",
    "macs",
    "params",
)

Figures = Mapping[str, Any]


def main() -> None:
    """Fills every marked section of the README."""
    _README.write_text(filled(_README.read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    """Returns the README's text with its marked sections rendered anew."""
    for name, render in SECTIONS.items():
        section = re.compile(rf"(<!-- figures:{name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not section.search(text):
            raise ValueError(f"the README has no section figures:{name}")
        text = section.sub(lambda found, r=render: f"{found[1]}{r()}\n{found[2]}", text)
    return text


def _front() -> str:
    job = _job("digits")
    members, shown = job["members"], _spread(len(job["members"]))
    rows = [_front_row(members[index], job["knee"]) for index in shown]
    rows += [_front_row(each, "") for each in job["references"]]
    limits = ", ".join(f"{name} at most {value:g}" for name, value in job["limits"].items())
    return "\n".join(
        [
            f"The digits job ({limits}) in {job['median_wall_s']:.0f} s on two cores found "
            f"{len(members)} members; {len(shown)} of them, and four networks for scale:",
            "",
            _table(
                ("candidate", "validation", "test", "predicted", "latency (ms)", "size (KiB)"),
                rows,
            ),
            "",
            "Accuracy is over plain and corrupted images together; latency is that of the "
            "simulated array; of uniform int4 networks the best that was measured is shown, its "
            "first and last layers and depthwise weights in int8. "
            + _source("main_job.py digits --repeats 3", "main_job_digits"),
        ]
    )


def _front_row(member: Figures, knee: str) -> tuple[str, ...]:
    origin = member["origin"].replace("evolution", "")
    name = origin if member["predicted"] is None else f"`{member['key']}` {origin}".strip()
    if member["key"] == knee:
        name = f"**{name} (knee)**"
    latency = member["latency_ms"]
    return (
        name,
        f"{member['accuracy']:.3f}",
        f"{member['test_accuracy']:.3f}",
        "-" if member["predicted"] is None else f"{member['predicted']:.3f}",
        "-" if latency is None else f"{latency:.4f}",
        f"{member['size_kib']:.1f}",
    )


def _jobs() -> str:
    jobs = [_job(name) for name in _JOBS]
    lines: dict[str, Callable[[Figures], str]] = {
        "wall time, whole process": lambda job: f"{job['median_wall_s']:.0f} s",
        **{
            f"stage {stage}": lambda job, s=stage: f"{job['median_stage_s'][s]:.1f} s"
            for stage in jobs[0]["median_stage_s"]
        },
        "peak memory": lambda job: f"{job['peak_memory_mib']} MiB",
        "largest subnet fp32, test": lambda job: _accuracy(job, "largest, fp32"),
        "largest subnet int8, test": lambda job: _accuracy(job, "largest, int8"),
        "smallest subnet int8, test": lambda job: _accuracy(job, "smallest, int8"),
        "best uniform int4, test": lambda job: _accuracy(job, "best uniform int4"),
        "fp32 samples: spread over noise": lambda job: _spread_over_noise(job, "fp32"),
        "mixed samples: spread over noise": lambda job: _spread_over_noise(job, "mixed"),
        "tau, fp32 predictor": lambda job: _tau(job, "fp32", "predictor"),
        "tau, MACs on fp32 samples": lambda job: _tau(job, "fp32", "macs"),
        "top-quartile tau, fp32 predictor": lambda job: _tau(
            job, "fp32", "predictor", "top_quartile_tau"
        ),
        "top-quartile tau, MACs on fp32 samples": lambda job: _tau(
            job, "fp32", "macs", "top_quartile_tau"
        ),
        **{
            f"tau, {name} on mixed samples": lambda job, n=name: _tau(job, "mixed", n)
            for name in _PREDICTORS
        },
        **{
            f"top-quartile tau, {name} on mixed samples": lambda job, n=name: _tau(
                job, "mixed", n, "top_quartile_tau"
            )
            for name in ("transferred", "from scratch", "bops")
        },
        "proxies kept": lambda job: ", ".join(job["proxies"]["used"]) or "none",
        "predicted and measured accuracy, RMSE of the last round": lambda job: (
            f"{job['rounds'][-1]['rmse']:.4f}"
        ),
        "members on the front": lambda job: str(len(job["members"])),
        "priced and measured latency, tau over members": _latency_tau,
        "knee: images where ONNX Runtime decides otherwise": lambda job: (
            f"{job['exports'][job['knee']]['optimised']['images_with_other_class']} of "
            f"{job['exports'][job['knee']]['images']}"
        ),
    }
    rows = [(name, *(line(job) for job in jobs)) for name, line in lines.items()]
    machine = jobs[0]["machine"]
    return "\n".join(
        [
            f"Both jobs on {machine['cores']} cores of an {machine['processor']}, without an "
            "accelerator. Tau is Kendall's, out of fold and grouped by architecture, with its "
            "95 % bootstrap interval; noise is the standard error of paired differences over "
            "validation images. The load before each run is in the files.",
            "",
            _table(("", *_JOBS), rows),
            "",
            _source("main_job.py CONFIG", "main_job_*"),
        ]
    )


def _transfer() -> str:
    results = {name: _result(f"transfer_{name}") for name in _JOBS}
    columns = [
        dict(_named_cell(name, tau) for name, tau in each["tau"].items())
        for each in results.values()
    ]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [(name, *(column.get(name, "-") for column in columns)) for name in names]
    seconds = " and ".join(
        f"{each['seconds_mixed_sample'] / each['seconds_fp32_sample']:.1f}"
        for each in results.values()
    )
    first = results["digits"]
    return "\n".join(
        [
            "Transfer against learning from scratch: tau on held-out mixed samples "
            f"({first['test_rows']} rows, mean and sd over {first['splits']} splits), with 200 "
            'fp32 samples as the base. "Time of n mixed" pays for its fp32 samples out of the '
            f"same measuring time; a mixed sample takes {seconds} times as long as an fp32 one.",
            "",
            _table(("", *_JOBS), rows),
            "",
            _source("transfer.py RUN", "transfer_*"),
        ]
    )


def _phase() -> str:
    result = _result("quantized_phase_digits")
    rows = [
        (name, *(f"{value:.3f}" for value in each.values()))
        for name, each in result["accuracy"].items()
    ]
    return "\n".join(
        [
            "What the training phase with random formats is worth: mean validation accuracy of "
            f"{result['subnets']} random digits subnets with one format throughout.",
            "",
            _table(("weights x activations", "after the fp32 phase", "after both phases"), rows),
            "",
            _source("quantized_phase.py RUN", "quantized_phase_digits"),
        ]
    )


def _blocks() -> str:
    result = _result("block_speed")
    names = list(next(iter(result["median_ms"].values())))
    rows = [
        (size, *(f"{milliseconds[name]:.2f}" for name in names))
        for size, milliseconds in result["median_ms"].items()
    ]
    return "\n".join(
        [
            "Why the shipped spaces are made of depthwise blocks behind a stem that shrinks "
            "larger images (fused ones train faster on 14x14 maps only): forward and backward "
            f"of one block in ms, batch {result['batch']}.",
            "",
            _table(("channels x map", *names), rows),
            "",
            _source("block_speed.py", "block_speed"),
        ]
    )


def _quantizers() -> str:
    result = _result("quantizer_speed")
    threads = {count: result[f"{count}_threads_ms"] for count in (1, 2)}
    fastest = {
        count: min(value for name, value in times.items() if name.startswith("torch"))
        for count, times in threads.items()
    }
    rows = [
        (
            name,
            *(f"{threads[n][name]:.1f} ({threads[n][name] / fastest[n]:.2f})" for n in (1, 2)),
        )
        for name in threads[1]
    ]
    step = result["step_ms"]
    return "\n".join(
        [
            f"Fake quantization of {result['values']:,} values in ms, and relative to the fastest "
            "of torch's own, which are no match bit for bit. A training step of random "
            f"Fashion-MNIST subnets takes {step['with formats']:.1f} ms with their formats and "
            f"{step['fp32']:.1f} ms in fp32: {result['step_ratio']:.2f} times as long.",
            "",
            _table(("quantizer", "1 thread", "2 threads"), rows),
            "",
            _source("quantizer_speed.py", "quantizer_speed"),
        ]
    )


def _ptq_qat() -> str:
    result = _result("ptq_qat")
    rows = [
        (name, f"{sum(values) / len(values):.3f}", *(f"{value:.3f}" for value in values))
        for name, values in result["accuracy"].items()
    ]
    epochs = result["epochs"]
    seeds = [f"seed {seed}" for seed in result["seeds"]]
    return "\n".join(
        [
            "A small depthwise network on Fashion-MNIST, batch norms folded, quantized after "
            f"training ({epochs['fp32']} epochs) and trained on with quantization in the loop "
            f"({epochs['quantized']} epochs): test accuracy.",
            "",
            _table(("weights and activations", "mean", *seeds), rows),
            "",
            _source("ptq_qat.py --data DIR", "ptq_qat"),
        ]
    )


def _lut() -> str:
    fidelity, speed = _result("lut_fidelity"), _result("lut_speed")
    rows = [
        (
            f"{name}, {fidelity['networks'][name]} networks",
            *(
                f"{found[way]['mape']:.1%}, {found[way]['tau']:.2f}"
                for way in ("with edges", "without edges", "repeat")
            ),
        )
        for name, found in fidelity["figures"].items()
        if fidelity["networks"][name] > _FEW_NETWORKS
    ]
    largest = ", ".join(
        f"{name} {each['measured']:.2f} ({each['with_edges']:.2f}; {each['without_edges']:.2f})"
        for name, each in fidelity["largest_ms"].items()
    )
    jobs = [
        (
            name,
            f"{each['networks_per_s']:,}",
            f"{each['compiled_per_s']:,}",
            f"{each['compile_s']:.1f}",
        )
        for name, each in speed["jobs"].items()
    ]
    build = " and ".join(
        f"{seconds:.1f} s ({name})" for name, seconds in speed["build"]["seconds"].items()
    )
    return "\n".join(
        [
            "Whole exported networks against the table of this machine, int8 and fp32 mixed layer "
            f"by layer, batch {fidelity['batch']}: mean relative error and Kendall's tau. "
            '"Measured twice" compares two halves of the same measurements.',
            "",
            _table(("networks", "with conversions", "layers alone", "measured twice"), rows),
            "",
            "The largest network in ms, measured (priced with conversions; layers alone): "
            f"{largest}. " + _source("lut_fidelity.py", "lut_fidelity"),
            "",
            "![Priced and measured latency](benchmarks/results/lut_fidelity.png)",
            "",
            "Candidates priced a second from picks, one thread:",
            "",
            _table(("space and model", "by networks", "compiled", "compiling (s)"), jobs),
            "",
            f"The table of the Fashion-MNIST space, {speed['build']['rows']} rows: {build}. "
            + _source("lut_speed.py", "lut_speed"),
        ]
    )


def _tables() -> str:
    tables, array = _result("imported_tables"), _result("simulator_fidelity")
    apq, haq, blocks = tables["apq"], tables["haq"], tables["nsganetv2"]
    rows = [
        (
            f"{name} {kind}",
            f"{each['spearman']:.3f}",
            f"{each['median']:.2f}",
            f"{each['p10']:.2f} to {each['p90']:.2f}",
        )
        for name in ("bitfusion-16x32 (published)", array["best"])
        for kind, each in array["latency"][name].items()
    ]
    equal = apq["of_these_equal_to_plain_sums_in_ms_and_mj"]
    return "\n".join(
        [
            f"Published tables: {equal:,} of {apq['networks_with_every_row_priced']:,} random "
            "networks of APQ's space cost what a plain sum of its rows says, in ms and mJ; "
            f"{apq['share_of_networks_with_estimated_rows']:.0%} of all random networks "
            "need a row that the table lacks (7x7 kernels on 4-bit inputs), estimated with a "
            f"stated error of {apq['median_stated_error_of_an_estimated_row']:.0%}. In "
            f"HAQ's table {haq['share_of_steps_that_take_no_less_time']:.0%} of "
            f"{haq['steps_of_one_bit']:,} steps to one bit more take no less time. With a "
            "fifth of the block shapes of a CPU table "
            f"left out, their estimates are off by {blocks['left_out_shapes_mape']:.1%} on "
            f"average; {blocks['left_out_shapes_share_within_one_stated_error']:.0%} lie within "
            f"one stated error, {blocks['left_out_shapes_share_within_two']:.0%} within two. "
            + _source("imported_tables.py --data DIR", "imported_tables"),
            "",
            "The simulated array beside the table that was published with APQ, simulated over "
            "published latency, layer by layer:",
            "",
            _table(("array, layers", "Spearman", "median ratio", "10 % to 90 %"), rows),
            "",
            _source("simulator_fidelity.py --data DIR", "simulator_fidelity"),
        ]
    )


def _predictors() -> str:
    result = _result("predictor_rank")
    peers = list(next(iter(result["ranking"].values()))["50"])[1:]
    rows = []
    for task, sizes in result["ranking"].items():
        for peer in peers:
            taus = [f"{each[peer]['tau']:.3f}" for each in sizes.values()]
            fit = f"{sizes['200'][peer]['fit_seconds']:.2f} s"
            rows.append((f"{task}: {peer}", *taus, fit))
    covered = "; ".join(
        f"{name} {each['coverage']:.1%}"
        for name, each in result["coverage_of_90_percent_intervals"].items()
    )
    speed = result["speed"]
    return "\n".join(
        [
            "Kendall's tau of predictors on all networks of published tables but the 50, 100 or "
            "200 that they learned from, means over 20 seeds (DyNAS-T: 5); the default is the "
            "same everywhere. Its settings were found on other seeds of the same tables.",
            "",
            _table(("table: predictor", "50", "100", "200", "fit of 200"), rows),
            "",
            f"90 % intervals cover {covered}. The default fits 1,000 rows of 500 columns in "
            f"{speed['default_fit_seconds_of_1000_rows_500_columns']:.1f} s and predicts "
            f"{speed['default_rows_predicted_a_second']:,.0f} rows a second. "
            + _source("predictor_rank.py --data DIR", "predictor_rank"),
        ]
    )


def _proxies() -> str:
    return "\n".join([*_proxy_speed(), "", *_bit_settings(), "", *_proxy_ranks()])


def _proxy_speed() -> list[str]:
    speed = _result("proxy_speed")
    ratios = [timing["ratios"] for timing in speed["by_threads"].values()]
    threads = " / ".join(speed["by_threads"])

    def each(name: str) -> str:
        return " / ".join(f"{found[name]['median']:.1f}" for found in ratios)

    worst = max(speed["largest_relative_difference"]["float64"].values())
    return [
        "Eight classic measures (grad_norm, snip, grasp, fisher, plain, jacov, synflow, l2_norm) "
        f"of a network of NAS-Bench-201's size, batch {speed['batch']}, on {threads} threads: "
        f"{each('eight: plain / session')} times as fast as passes of their own, the four from "
        f"one gradient {each('four: plain / session')} times; all but grasp take "
        f"{each('without grasp: session / forward and backward')} times one forward and backward "
        f"pass. Largest relative difference to plain float64 code: {worst:.0e}. "
        + _source("proxy_speed.py", "proxy_speed"),
    ]


_BIT_SCORES = {
    "kl": "KL of the outputs, a forward pass for each layer and format",
    "taylor": "gradients times errors",
    "qe": "quantization entropy",
    "weight_relative_mse": "relative errors of the weights",
    "hawq_v2": "HAWQ-V2",
    "ompq": "OMPQ",
    "bit_sum": "sum of bits",
    "size_kib": "size",
    "bops": "bit operations",
}


def _bit_settings() -> list[str]:
    mq = _result("mq_bench")
    first, second = "fashion-mnist, plain: held out", "fashion-mnist, inverted_residual"
    rows = [
        (label, *(_rho(mq["by_hand"][name][each]) for each in (first, second)))
        for name, label in _BIT_SCORES.items()
    ]
    rows.append(("evolved, fittest seed", *(_rho(mq["winner"][each]) for each in (first, second))))
    spread = [[each[where]["rho"] for each in mq["evolved"]] for where in (first, second)]
    seeds = f"evolved, {len(mq['evolved'])} seeds"
    rows.append((seeds, *(f"{min(each):.3f} to {max(each):.3f}" for each in spread)))
    return [
        "Per-layer weight bits {2, 3, 4, 8} of two small networks trained on Fashion-MNIST, "
        "quantized after training, accuracy on 5,000 images; Spearman with 95 % intervals. "
        f"Formulas evolved on {mq['sets']['fashion-mnist, plain: training']['settings']} settings "
        f"of the first network, {mq['programs']:,} programs each. They beat the scores that need "
        "no passes of their own on held-out settings of that network, which does not carry over "
        "to the other one; they do not beat the KL divergence, which sees the outputs:",
        "",
        _table(("score", "first network, 500 held out", "second network, 1,000"), rows),
        "",
        _source("mq_bench.py score", "mq_bench"),
    ]


def _rho(found: Figures) -> str:
    return f"{found['rho']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _proxy_ranks() -> list[str]:
    ranks = _result("proxy_rank")
    single = ranks["zero_samples"]["published, all cells"]
    rows = [(name, f"{each['tau']['value']:.3f}") for name, each in single.items()]
    gains = [
        f"{each['cells and proxies']['tau']:.3f} against {each['cells']['tau']:.3f} at {size} "
        f"({_gain(each['cells and proxies']['gain'])})"
        for size, each in ranks["columns"].items()
    ]
    layouts = {
        "placed by edge": "six statistics by place",
        "packed to the front": "three statistics packed",
    }
    layers = [
        f"{each[f'ParZC, {name}']['tau']:.3f} against {each[f'extra trees, {name}']['tau']:.3f} "
        f"at {size} {label}"
        for label, name in layouts.items()
        for size, each in ranks["layers"].items()
    ]
    return [
        f"NAS-Bench-201, {ranks['cells']:,} cells, validation accuracy on CIFAR-10. Tau without a "
        "single measured network:",
        "",
        _table(("proxy", "tau"), rows),
        "",
        "Proxies as columns of the default predictor, tau over 20 seeds: "
        + "; ".join(gains)
        + f". ParZC and extra trees on the same statistics by layer, {ranks['measured_cells']} "
        "cells, 10 seeds: "
        + "; ".join(layers)
        + ". "
        + _source("proxy_rank.py --data DIR", "proxy_rank"),
    ]


def _gain(found: Figures) -> str:
    return f"gain {found['mean']:.3f}, {found['low']:.3f} to {found['high']:.3f}"


SECTIONS: dict[str, Callable[[], str]] = {
    "digits": _front,
    "jobs": _jobs,
    "transfer": _transfer,
    "phase": _phase,
    "blocks": _blocks,
    "quantizers": _quantizers,
    "ptq_qat": _ptq_qat,
    "lut": _lut,
    "tables": _tables,
    "proxies": _proxies,
    "predictors": _predictors,
}
"""Every marked section of the README and what renders it."""


def _spread(count: int) -> list[int]:
    """Returns which members are shown: the ends and some between."""
    if count <= _SHOWN_MEMBERS:
        return list(range(count))
    step = (count - 1) / (_SHOWN_MEMBERS - 1)
    return [round(index * step) for index in range(_SHOWN_MEMBERS)]


def _accuracy(job: Figures, origin: str) -> str:
    found = next(each for each in job["references"] if each["origin"] == origin)
    plain, corrupted = found.get("part:test_plain"), found.get("part:test_corrupted")
    if corrupted is None:
        return f"{found['test_accuracy']:.3f}"
    return f"{found['test_accuracy']:.3f} ({plain:.3f} plain, {corrupted:.3f} corrupted)"


def _latency_tau(job: Figures) -> str:
    latency = job["latency"]
    left_out = latency["members_emulated"]
    tau = latency["tau_of_members"]
    note = f" ({left_out} with emulated fp8 left out)" if left_out else ""
    return ("-" if tau is None else f"{tau:.2f}") + note


def _spread_over_noise(job: Figures, kind: str) -> str:
    noise = job["noise"][kind]
    return f"{noise['deviation']:.4f} / {noise['noise']:.4f} = {noise['ratio']:.1f}"


def _tau(job: Figures, kind: str, name: str, metric: str = "tau") -> str:
    scores = job["scores"][kind]["scores"]
    if name not in scores:
        return "-"
    tau = scores[name][metric]
    return f"{tau['value']:.3f} ({tau['low']:.3f} to {tau['high']:.3f})"


def _named_cell(name: str, tau: Figures) -> tuple[str, str]:
    """Returns a row's name and its figure; what the samples were goes with the figure."""
    name, _, samples = name.partition(" (")
    note = f" ({samples}" if samples else ""
    return name, f"{tau['mean']:.3f} ± {tau['sd']:.3f}{note}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _source(command: str, name: str) -> str:
    return f"(`python benchmarks/{command}`, `benchmarks/results/{name}.json`)"


def _job(config: str) -> Figures:
    return _result(f"main_job_{config}")


def _result(name: str) -> Figures:
    figures: Figures = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return figures


if __name__ == "__main__":
    main()
