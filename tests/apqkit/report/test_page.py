import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from apqkit.report.figures import FIGURES
from apqkit.report.page import front_table, write_report

VOID = {"meta", "img", "br", "link", "hr"}
SECTIONS = [
    "The front",
    "The front",
    "Number formats layer by layer",
    "Where the latency goes",
    "Predicted and measured accuracy",
    "How well the predictors rank",
    "Search, round by round",
    "Priced and measured latency",
    "Spread of the samples",
    "Training of the supernet",
    "Time by stage",
    "Exported models",
    "Finetuned members",
    "Versions and seeds",
]


class Page(HTMLParser):
    """Reads a page strictly: every element must be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sections, self.images, self.links, self.rows = [], [], {}, [], []
        self.words = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "img":
            self.images[attributes["id"]] = attributes
        if tag == "tr":
            self.rows.append([attributes.get("class")])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.words.append(text)
        if self.open and self.open[-1] == "h2":
            self.sections.append(text)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(text)


def written(data, tmp_path):
    path = write_report(data, tmp_path / "report")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    return Page(text), text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def page(data, folder):
    return written(data, folder)[0]


def test_the_page_has_every_section_in_order(page):
    assert page.sections == SECTIONS


def test_the_page_opens_offline(page, folder):
    text = (folder / "report/index.html").read_text()
    assert page.links
    assert all(each.startswith("data:image/png;base64,") for each in page.links)
    assert not re.search(r"<(script|link|iframe|object)|@import|url\(|https?:", text)


def test_the_same_figures_lie_beside_the_page(page, folder):
    files = {each.stem: each.read_bytes() for each in (folder / "report/figures").iterdir()}
    assert set(files) == set(page.images) == set(FIGURES)
    for name, attributes in page.images.items():
        inside = base64.b64decode(attributes["src"].partition(",")[2])
        assert inside == files[name]
        assert inside.startswith(b"\x89PNG")
        assert attributes["alt"] == FIGURES[name][0]


def test_nothing_else_is_written(page, folder):
    assert page.sections
    assert sorted(each.name for each in (folder / "report").iterdir()) == [
        "figures",
        "index.html",
    ]


def test_text_of_others_is_escaped(page, folder):
    assert "digits <on> a device" in page.words
    text = (folder / "report/index.html").read_text()
    assert "digits &lt;on&gt; a device" in text
    assert "what &lt;b&gt;figures&lt;/b&gt; mean" in text
    assert "a &lt;b&gt; machine" in text


def test_members_stand_with_their_figures_and_the_knee_is_marked(page):
    rows = {row[1]: row for row in page.rows if len(row) == 10 and row[1].startswith("key")}
    assert rows["key1"] == [
        "knee", "key1", "evolution", "0.8900", "0.8800", "0.910 (0.860-0.960)", "0.4500", "7.00",
        "1.90", "7.00",
    ]  # fmt: skip
    assert [row[0] for row in rows.values()].count("knee") == 1


def test_references_stand_below_without_a_prediction(page):
    (largest,) = [row for row in page.rows if row[1:2] == ["largest-fp32"]]
    assert largest == [
        None, "largest-fp32", "largest, fp32", "0.9000", "0.8900", "-", "8.00", "2.00", "8.00",
    ]  # fmt: skip


def test_the_knee_is_shown_layer_by_layer(page):
    assert "key1, layer by layer" in page.words
    assert [None, "s0.b0.expand", "conv 1x1", "int4 x fp8_e4m3", "0.25000"] in page.rows


def test_predictors_stand_beside_baselines_with_intervals_and_rows(page):
    assert "fp32, 24 rows" in page.words
    assert "mixed, 25 rows" in page.words
    interval = "0.750 (0.650 to 0.850)"
    assert [None, "predictor", *[interval] * 4] in page.rows
    assert [None, "macs", *["0.500 (0.400 to 0.600)"] * 4] in page.rows


ADVICE = {
    "seconds_a_sample": {"fp32": 0.0361, "mixed": 0.0581},
    "samples": {"fp32": 200, "mixed": 100},
    "budget_s": 13.04,
    "split": {
        "fp32": 36, "mixed": 202, "tau": 0.8123, "tau_mixed_only": 0.8, "tau_scratch": 0.75,
        "tau_scratch_at_equal_cost": 0.825, "fp32_worth": 0.5, "error": 0.02, "text": "measure",
    },
    "can_tell": True,
    "text": "measure <some> more",
}  # fmt: skip
ADVICE_WORDS = (
    "An fp32 sample takes 0.0361 s, a mixed one 0.0581 s. For another 13.0 s, what the samples at "
    "hand have cost: measure <some> more."
)


def test_both_accountings_of_transfer_stand_below_the_predictors(data, tmp_path):
    page, _ = written(replace(data, budget=ADVICE), tmp_path)
    order = page.words.index
    assert order("mixed, 25 rows") < order("What more samples would bring") < order(ADVICE_WORDS)
    assert order(ADVICE_WORDS) < order("Search, round by round")
    start = page.rows.index([None, "budget", "expected tau"])
    assert page.rows[start + 1 : start + 5] == [
        [None, "best split: 36 fp32 and 202 mixed samples", "0.812"],
        [None, "mixed samples alone, transferred from the fp32 samples at hand", "0.800"],
        [None, "mixed samples alone, from scratch", "0.750"],
        [None, "the same, the cost of the fp32 samples at hand spent on mixed ones too", "0.825"],
    ]


def test_too_few_samples_for_any_figure_leave_the_sentence_alone(data, tmp_path):
    page, _ = written(replace(data, budget={**ADVICE, "split": None}), tmp_path)
    assert ADVICE_WORDS in page.words
    assert [None, "budget", "expected tau"] not in page.rows


def test_without_samples_nothing_is_said_of_more(page):
    assert "What more samples would bring" not in page.words


def test_versions_seeds_and_notes_are_said(page):
    assert [None, "seed", "17"] in page.rows
    assert [None, "torch", "2.99.1"] in page.rows
    assert "what <b>figures</b> mean" in page.words
    assert (
        "4 members on the front; objectives: accuracy max, latency_ms min; 6 candidates measured."
        in page.words
    )


def test_rounds_and_finalists_have_their_tables(page):
    assert [None, "1", "2", "0.0", "0.125", "0.5", "0.375"] in page.rows
    assert [None, "key1", "evolution", "0.25", "0.04", "0.03", "0.06", "1"] in [
        row[:8] for row in page.rows
    ]
    assert [None, "largest", "int8", "0.75"] in page.rows


def test_exports_and_finetuned_members_appear_once_there_are_any(data, page, tmp_path):
    assert "None yet." in page.words
    latency = {"median_ms": 0.5, "p10_ms": 0.4, "p90_ms": 0.75, "batch": 4}
    check = {
        "key": "key1", "carrier": "packed",
        "file_kib": 9.5, "torch_accuracy": 0.875, "images": 240, "split": "test", "note": "n",
        "optimised": {"accuracy": 0.75, "images_with_other_class": 2, "largest_difference": 0.5,
                      "beyond_one_step": 0},
        "unoptimised": {"accuracy": 0.875, "images_with_other_class": 1,
                        "largest_difference": 0.25},
        "latency": latency, "reference_latency": {**latency, "median_ms": 1.0},
    }  # fmt: skip
    accuracy = {"validation": 0.5, "test": 0.25}
    tuned = {"key": "key1", "epochs": 3, "before": accuracy, "after": accuracy}
    after, _ = written(replace(data, exports=[check], finetuned=[tuned]), tmp_path)
    assert [
        None, "key1", "packed", "9.5", "0.8750", "0.7500", "1", "2", "0", "0.25", "240 (test)",
        "0.500 (0.400 to 0.750), batch 4", "1.000 (0.400 to 0.750), batch 4", "n",
    ] in after.rows  # fmt: skip
    assert [None, "key1", "3", "0.5000", "0.5000", "0.2500", "0.2500"] in after.rows


def test_figures_that_were_not_taken_read_as_a_dash(data):
    table = front_table(data.front.references)
    assert list(table["predicted (interval)"]) == ["-", "-"]
    assert list(table["latency (ms)"]) == ["-", "0.4500"]
    assert not table.isin(["nan"]).any().any()
    assert np.isnan(data.front.references.costs["latency_ms"][0])


def test_the_page_of_a_run_is_whole(smoke_run):
    page = Page((smoke_run[0] / "report" / "index.html").read_text(encoding="utf-8"))
    assert page.sections == SECTIONS
    assert all(each.startswith("data:image/png;base64,") for each in page.links)
    assert set(page.images) == set(FIGURES)
    assert "What more samples would bring" in page.words
    names = {row[1] for row in page.rows if len(row) == 3}
    assert {"seed", "threads", "device", "batch", "torch", "apqkit", "python", "cores"} <= names
    assert {each.stem for each in (smoke_run[0] / "report/figures").iterdir()} == set(FIGURES)
