import gzip
import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.cost.importers.sources import (
    figure,
    positive,
    read_csv,
    read_flat_yaml,
    read_json,
    read_text,
)
from apqkit.errors import CostError

# An excerpt of proxylessnas/pixel_trim.yaml of ProxylessNAS' latency tools.
PIXEL = """\
Conv-input:224x224x3-output:112x112x32:
  count: 949
  mean: 4.397037934668071
  var: 0.1562765530967112
Logits-input:7x7x1280-output:1000:
  count: 949
  mean: 0.9348261327713382
  var: 0.1500926595152672
"""


@pytest.fixture
def file(tmp_path):
    def write(content, name="file"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refused(read, *arguments):
    with pytest.raises(CostError) as caught:
        read(*arguments)
    return str(caught.value)


def test_packed_text_is_unpacked(file):
    assert read_text(file("naïve")) == "naïve"
    assert read_text(file(gzip.compress(b"text"), "file.gz")) == "text"


def test_files_that_are_no_text_are_refused(file, tmp_path):
    missing = tmp_path / "missing"
    assert refused(read_text, missing) == f"{missing} cannot be read: No such file or directory"
    assert refused(read_text, tmp_path) == f"{tmp_path} cannot be read: Is a directory"
    path = file(b"\xff\xfe")
    assert refused(read_text, path) == f"{path} is no text in UTF-8"
    for content in (b"text", gzip.compress(b"text" * 100)[:-9], b"\x1f\x8b\x08" + bytes(30)):
        path = file(content, "file.gz")
        assert refused(read_text, path) == f"{path} is no gzip file, or a damaged one"


def test_json_is_an_object_with_each_key_once(file):
    assert read_json(file('{"a": {"b": 1.5}, "c": 2}')) == {"a": {"b": 1.5}, "c": 2}
    path = file("[1]")
    assert refused(read_json, path) == f"{path} must hold a JSON object, got list"
    path = file('{"a": 1, "b": {"c": 1, "c": 2}}')
    assert refused(read_json, path) == f"{path} names 'c' twice"
    for text in ("NaN", "Infinity", "-Infinity"):
        path = file(f'{{"a": {text}}}')
        assert refused(read_json, path) == f"{path} holds {text}, which is no number"
    path = file('{"a": 1')
    assert refused(read_json, path) == (
        f"{path} is no JSON: Expecting ',' delimiter: line 1 column 8 (char 7)"
    )
    path = file('{"a":' * 100_000)
    assert refused(read_json, path).startswith(f"{path} is no JSON: ")


def test_csv_is_read_as_text(file):
    frame = read_csv(file("b,a,c\n1,x,3\nNA,,nan\n"), ("a", "b"))
    assert frame.to_dict("list") == {"a": ["x", ""], "b": ["1", "NA"]}
    assert read_csv(file("a,b\n1\n"), ("a", "b")).to_dict("list") == {"a": ["1"], "b": [""]}


def test_broken_csv_is_refused(file):
    path = file("")
    assert refused(read_csv, path, ("a",)) == f"{path} is no CSV: No columns to parse from file"
    path = file("a,b\n1,2\n1,2,3,4\n")
    assert refused(read_csv, path, ("a",)) == (
        f"{path} is no CSV: Error tokenizing data. C error: Expected 2 fields in line 3, saw 4"
    )
    path = file("a,b\n1,2\n")
    assert refused(read_csv, path, ("a", "c")) == f"{path} lacks the column 'c'"
    path = file("a,b\n")
    assert refused(read_csv, path, ("a",)) == f"{path} holds no rows"


def test_flat_yaml_is_read_as_pyyaml_reads_it(file):
    assert read_flat_yaml(file(PIXEL)) == yaml.safe_load(PIXEL)
    assert read_flat_yaml(file(PIXEL.replace("\n", "\r\n"))) == yaml.safe_load(PIXEL)


NAMES = st.lists(
    st.from_regex(r"[A-Z][A-Za-z0-9_-]{0,40}(:[a-z0-9x-]{1,20}){0,3}", fullmatch=True),
    max_size=5,
    unique=True,
)
NUMBERS = st.integers(0, 10**6) | st.floats(0.0, 1e6)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), flow=st.sampled_from([True, False, None]))
def test_whatever_pyyaml_writes_is_read(data, flow, tmp_path_factory):
    table = {
        name: data.draw(st.dictionaries(st.sampled_from(["count", "mean", "std"]), NUMBERS,
                                        min_size=1))
        for name in data.draw(NAMES)
    }  # fmt: skip
    text = yaml.safe_dump(table, default_flow_style=flow)
    if flow or not table:
        text = "".join(yaml.safe_dump({k: v}, default_flow_style=None) for k, v in table.items())
    path = tmp_path_factory.getbasetemp() / "drawn.yaml"
    path.write_text(text)
    assert read_flat_yaml(path) == table


def test_braces_may_span_lines(file):
    text = "A-input:1x1x1-output:1:\n  mean: 1\n\n# noted\nB:x: {count: 3,\n    mean: 2.5e-3}\n"
    assert read_flat_yaml(file(text)) == {
        "A-input:1x1x1-output:1": {"mean": 1.0},
        "B:x": {"count": 3.0, "mean": 0.0025},
    }


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("  mean: 1\n", "line 1: a number stands before any key: '  mean: 1'"),
        ("A:\n  mean: 1\nA:\n  mean: 2\n", "line 3: 'A' is there twice"),
        ("A:\n  mean: 1\n  mean: 2\n", "line 3: 'mean' is there twice"),
        ("A: {mean: 1}\n  std: 2\n", "line 2: a number stands before any key: '  std: 2'"),
        ("A:\n  mean: .nan\n", "line 2: expected 'name: number', got 'mean: .nan'"),
        ("A:\n  mean: 1_0\n", "line 2: expected 'name: number', got 'mean: 1_0'"),
        ("A:\n  mean: 'x'\n", "line 2: expected 'name: number', got \"mean: 'x'\""),
        ("A:\n  mean:\n    deep: 1\n", "line 2: expected 'name: number', got 'mean:'"),
        ("A:\n\tmean: 1\n", r"line 2: expected 'KEY:' or '  name: number', got '\tmean: 1'"),
        ("A:\n  - 1\n", "line 2: expected 'name: number', got '- 1'"),
        ("A:\n  <<: *x\n", "line 2: expected 'name: number', got '<<: *x'"),
        ("A: {mean: {deep: 1}}\n", "line 1: expected 'KEY:' or '  name: number', got "
         "'A: {mean: {deep: 1}}'"),
        ("A: {mean: 1\n", "line 1: expected 'KEY:' or '  name: number', got 'A: {mean: 1'"),
        ("A: {}\n", "line 1: expected 'name: number', got ''"),
        ("A: 1\n", "line 1: expected 'KEY:' or '  name: number', got 'A: 1'"),
        ("&x A:\n", "line 1: expected 'KEY:' or '  name: number', got '&x A:'"),
        ("!!python/object:os.system A:\n", "line 1: expected 'KEY:' or '  name: number', got "
         "'!!python/object:os.system A:'"),
        ("? A\n: {mean: 1}\n", "line 1: expected 'KEY:' or '  name: number', got '? A'"),
        ("---\n", "line 1: expected 'KEY:' or '  name: number', got '---'"),
        ("x" * 90 + "\n", f"line 1: expected 'KEY:' or '  name: number', got '{'x' * 60}...'"),
    ],
)  # fmt: skip
def test_yaml_beyond_flat_tables_is_refused(text, fault, file):
    path = file(text)
    assert refused(read_flat_yaml, path) == f"{path}, {fault}"


@pytest.mark.parametrize("value", [1, 2.5, 1e-9, 2**31, "3", "4.5e-3", ".5", "+2."])
def test_figures_are_numbers_or_texts_of_them(value):
    assert positive(value, "mean", "file") == figure(value, "mean", "file") == float(value)


@pytest.mark.parametrize(
    "value",
    [-1, -1e-9, float("nan"), float("inf"), 2**31 + 1, True, None, [], "", "nan", "1_0", "x", "-1",
     "1e400", "٣", json.loads("1e400")],
)  # fmt: skip
def test_what_is_no_figure_is_refused(value):
    for read in (positive, figure):
        text = refused(read, value, "mean", "file, 'A'")
        assert text == f"file, 'A': mean must be a positive number, got {value!r}"


@pytest.mark.parametrize("value", [0, 0.0, "0", "0.0", "-0"])
def test_zero_is_a_figure_but_not_a_positive_one(value):
    assert figure(value, "std", "file") == 0.0
    text = refused(positive, value, "mean", "file")
    assert text == f"file: mean must be a positive number, got {value!r}"
