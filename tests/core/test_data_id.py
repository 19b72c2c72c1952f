"""Data ids: one text for each, and nothing hostile among them (S7, S8)."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from p3s_prefect.core.data_id import DataId, Value, safe_name
from p3s_prefect.core.errors import BadName

NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,119}", fullmatch=True)


def _is_number(text: str) -> bool:
    return text.isdigit() and str(int(text)) == text


VALUES = st.one_of(st.integers(0, 2**63 - 1), NAMES.filter(lambda text: not _is_number(text)))
DATA_IDS = st.dictionaries(NAMES, VALUES, min_size=1, max_size=5).map(lambda values: DataId(tuple(values.items())))


@given(DATA_IDS)
@example(DataId.of(run=0, camera="00"))
@example(DataId.of(run=2**63 - 1, camera="1e5"))
def test_text_and_path_read_back(data_id: DataId) -> None:
    """S8: the same data id from its text and its path, and its path stays below where it is put."""
    assert DataId.parse(str(data_id)) == data_id
    assert DataId.parse(data_id.path) == data_id
    parts = PurePosixPath(data_id.path).parts
    assert len(parts) == len(data_id.items)
    assert not {"..", ".", "/"} & set(parts)


@given(DATA_IDS, DATA_IDS)
def test_two_units_never_share_a_text(one: DataId, other: DataId) -> None:
    """P2."""
    assert (str(one) == str(other)) == (one == other) == (one.path == other.path)


@given(st.text(max_size=30))
@example("9" * 5000)
@example("run=" + "9" * 5000)
@example("run=99999999999999999999")
@example("a=1\x00")
@example("run=../../etc/passwd")
def test_any_other_text_is_refused_or_read_exactly(text: str) -> None:
    """S8: never another error than ours."""
    for read in (DataId.parse, lambda value: DataId.of(run=value)):
        try:
            data_id = read(text)
        except BadName:
            continue
        assert DataId.parse(str(data_id)) == data_id


@pytest.mark.parametrize(
    "value",
    ["", ".", "..", ".hidden", "-rf", "a/b", "a\\b", "a b", "a=b", "a\n", "a\x00", "ä", "٣", "%2e", "7", "x" * 121],
)
def test_texts_that_are_no_values(value: str) -> None:
    """S7, S8."""
    with pytest.raises(BadName):
        DataId.of(run=value)


@pytest.mark.parametrize("value", [-1, 2**63, True, 1.0, None, b"a", ["a"]])
def test_things_that_are_no_values(value: Value) -> None:
    """S8."""
    with pytest.raises(BadName):
        DataId.of(run=value)


@pytest.mark.parametrize("text", ["", " ", "run", "run=", "=3", "run=1 run=2", "run=1 =2", "/run=1", "run=1,subrun=2"])
def test_texts_that_are_no_data_ids(text: str) -> None:
    """S8."""
    with pytest.raises(BadName):
        DataId.parse(text)


def test_a_data_id_without_dimensions_is_refused() -> None:
    """S8."""
    with pytest.raises(BadName, match="without dimensions"):
        DataId(())


def test_parts_of_it() -> None:
    """V23: in the order that is asked for."""
    unit = DataId.of(run=2008, camera="lst1", subrun=3)
    assert (unit["run"], unit.dimensions) == (2008, ("run", "camera", "subrun"))
    assert str(unit.subset(["camera", "run"])) == "camera=lst1 run=2008"
    assert DataId.parse(" run=2008/camera=lst1  subrun=3 ") == unit


def test_a_hostile_name_is_quoted_short_and_escaped() -> None:
    """S8."""
    with pytest.raises(BadName) as caught:
        safe_name("\x1b[2J" + "x" * 10_000, what="file")
    assert len(caught.value.what) < 200
    assert "\x1b" not in str(caught.value)


def test_dimensions_in_any_order_name_the_same() -> None:
    """S8: and one that there is not is named with those that there are."""
    assert DataId.parse("subrun=3 run=2008").ordered(["run", "subrun"]) == DataId.of(run=2008, subrun=3)
    assert DataId.of(run=2008).ordered(["run", "subrun"]) == DataId.of(run=2008)
    with pytest.raises(BadName, match=r"no dimension 'rum'\n  There are: run, subrun"):
        DataId.of(rum=2008).ordered(["run", "subrun"])
