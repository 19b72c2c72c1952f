"""What payloads leave behind: summary.json and products.json, good and hostile (P17, S8)."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from p3s_prefect.core.errors import BadProducts
from p3s_prefect.core.payload import PRODUCTS_FILE, SUMMARY_FILE, read_products, read_summary, schemas

GOLDEN_SUMMARY = """
{
  "noise_median": {"value": 4.2, "unit": "ADC"},
  "dead_pixels": {"value": 3},
  "is_flat": {"value": true},
  "brightest_event": {"value": "event 7, Ωmega\\nsecond line", "unit": ""}
}
"""
GOLDEN_PRODUCTS = """
[
  {"category": "Camera", "title": "Pedestal (µ)", "file": "pedestal.png", "shows": "Mean of the first 8 samples."},
  {"category": "Tables", "title": "All pixels", "file": "pixels.fits"}
]
"""


def test_the_golden_example() -> None:
    """P17: in text or UTF-8 bytes."""
    summary = read_summary(GOLDEN_SUMMARY)
    assert summary == read_summary(GOLDEN_SUMMARY.encode())
    assert {name: (found.value, found.unit) for name, found in summary.items()} == {
        "noise_median": (4.2, "ADC"),
        "dead_pixels": (3, ""),
        "is_flat": (True, ""),
        "brightest_event": ("event 7, Ωmega\nsecond line", ""),
    }
    assert type(summary["dead_pixels"].value) is int
    assert type(summary["is_flat"].value) is bool
    products = read_products(GOLDEN_PRODUCTS)
    assert products == read_products(GOLDEN_PRODUCTS.encode())
    assert [(p.category, p.title, p.file, p.shows) for p in products] == [
        ("Camera", "Pedestal (µ)", "pedestal.png", "Mean of the first 8 samples."),
        ("Tables", "All pixels", "pixels.fits", ""),
    ]
    assert read_summary("{}") == {}
    assert read_products("[]") == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": {"value": NaN}}', "'a.value': must be finite"),
        ('{"a": {"value": -Infinity}}', "'a.value': must be finite"),
        ('{"a": {"value": 1e999}}', "'a.value': must be finite"),
        ('{"a": {"value": 9223372036854775808}}', "'a.value': must fit into 64 bits"),
        ('{"a": {"value": 1' + "0" * 5000 + "}}", "cannot be read as JSON"),
        ('{"a": {"value": null}}', "'a.value': must be a number, a truth value or a text"),
        ('{"a": {"value": [1]}}', "'a.value': must be a number, a truth value or a text"),
        ('{"a": {"value": {"value": 1}}}', "'a.value': must be a number, a truth value or a text"),
        ('{"a": {"value": ' + "[" * 500 + "]" * 500 + "}}", "'a.value': must be a number"),
        ('{"a": {"value": "' + "x" * 1001 + '"}}', "'a.value': must have at most 1000 characters"),
        ('{"a": {"value": "\\u001b[2J"}}', "'a.value': must not hold control characters"),
        ('{"a": {"value": "\\u0000"}}', "'a.value': must not hold control characters"),
        ('{"a": {"value": "\\ud800"}}', "'a.value': must not hold control characters or lone surrogates"),
        ('{"a": {"value": 1, "unit": "\\udfff"}}', "'a.unit': must not hold control characters or lone surrogates"),
        ('{"a": {"value": 1, "unit": 3}}', "'a.unit'"),
        ('{"a": {"value": 1, "unit": "' + "m" * 41 + '"}}', "'a.unit'"),
        ('{"a": {"value": 1, "units": "m"}}', "'a.units'"),
        ('{"a": {"unit": "m"}}', "'a.value'"),
        ('{"a": 1}', "'a'"),
        ('{"a": {"value": 1}, "a": {"value": 2}}', "'a' is given twice"),
        ('{"a": {"value": 1, "value": 2}}', "'value' is given twice"),
        ('{"../a": {"value": 1}}', "cannot be used"),
        ('{"": {"value": 1}}', "cannot be used"),
        ('{"\\ud800": {"value": 1}}', "cannot be used"),
        ('{"' + "x" * 100_000 + '": {"value": 1}}', "cannot be used"),
        ("[]", "dictionary"),
        ("3", "dictionary"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        ("{'a': 1}", "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read as JSON"),
    ],
)
def test_hostile_summaries(text: str | bytes, says: str) -> None:
    """P17, S8: one error that names the file and the place in it, of a length that a page can show."""
    with pytest.raises(BadProducts) as caught:
        read_summary(text)
    assert caught.value.what.startswith(SUMMARY_FILE)
    assert says in caught.value.what
    assert len(str(caught.value)) < 700
    assert str(caught.value).encode().isascii()


def _product(**values: object) -> str:
    return json.dumps([{"category": "c", "title": "t", "file": "f.png", **values}])


_OUTSIDE = ["../f.png", "/etc/passwd", "a/b.png", "..", ".", "", "a\\b", "f.png/", "C:f.png", "%2e%2e%2f"]


@pytest.mark.parametrize(
    "file",
    [*_OUTSIDE, "f\x00.png", "f\n.png", "-rf", ".hidden", "fïle.png", "x" * 121, None, 3, ["f.png"]],
)
def test_a_product_is_a_plain_file_in_the_working_directory(file: object) -> None:
    """P17, S7: no path leads out of it."""
    with pytest.raises(BadProducts, match=r"products\.json: '0\.file'"):
        read_products(_product(file=file))


@pytest.mark.parametrize(
    "text",
    [
        _product(category=""),
        _product(title=""),
        _product(title="x" * 121),
        _product(title="\x1b]0;owned\x07"),
        _product(shows="x" * 1001),
        _product(shows=None),
        _product(caption="?"),
        '[{"category": "c", "file": "f.png"}]',
        '[{"category": "c", "title": "t", "title": "u", "file": "f.png"}]',
        '{"category": "c", "title": "t", "file": "f.png"}',
        "[[]]",
        "[null]",
        "[" * 100_000,
    ],
)
def test_hostile_products(text: str) -> None:
    """P17, S8."""
    with pytest.raises(BadProducts, match=r"^products\.json"):
        read_products(text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "value", "unit", "file", "title", "category", "shows", "x/y"]), inner)
    ),
    max_leaves=8,
)
_TEXT = st.text(st.characters(), max_size=45)
_SUMMARIES = st.dictionaries(
    st.text(st.sampled_from("aB9_.+-/ é"), max_size=6),
    st.fixed_dictionaries(
        {"value": st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=12)},
        optional={"unit": _TEXT},
    ),
    max_size=3,
)
_PRODUCTS = st.lists(
    st.fixed_dictionaries(
        {"category": _TEXT, "title": _TEXT, "file": st.text(st.sampled_from("aB9_.+-/\\ é"), max_size=6)},
        optional={"shows": _TEXT},
    ),
    max_size=3,
)


@given(_JSON | _SUMMARIES)
@example({"a": {"value": 1.0, "unit": "ADC"}})
def test_the_published_schema_accepts_every_summary_that_is_read(content: Any) -> None:
    """P17, S8: and whatever is not read is refused with our own error."""
    try:
        found = read_summary(json.dumps(content))
    except BadProducts:
        return
    jsonschema.validate(content, schemas()[SUMMARY_FILE])
    assert {name: value.model_dump(exclude_unset=True) for name, value in found.items()} == content


@given(_JSON | _PRODUCTS)
@example([{"category": "c", "title": "t", "file": "f.png"}])
def test_the_published_schema_accepts_every_list_of_products_that_is_read(content: Any) -> None:
    """P17, S8."""
    try:
        found = read_products(json.dumps(content))
    except BadProducts:
        return
    jsonschema.validate(content, schemas()[PRODUCTS_FILE])
    assert [product.model_dump(exclude_unset=True) for product in found] == content


@pytest.mark.parametrize("file", [SUMMARY_FILE, PRODUCTS_FILE])
def test_the_published_schemas_are_schemas(file: str) -> None:
    """P17: they refuse what has the wrong shape, too."""
    schema = schemas()[file]
    jsonschema.Draft202012Validator.check_schema(schema)
    for wrong in (3, None, {"a": 1}, [1], {"a": {"value": None}}, [{"category": "", "title": "t", "file": "f"}]):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@given(st.binary(max_size=60) | st.text(st.characters(), max_size=60))
def test_any_bytes_are_read_or_refused(content: bytes | str) -> None:
    """S8: never another error than ours."""
    for read in (read_summary, read_products):
        with suppress(BadProducts):
            assert not read(content)
