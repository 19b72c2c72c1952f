"""Which file is which unit: one name a unit, one unit a name (P2), and hostile names do no harm (S8)."""

import string

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import BadName
from p3s_prefect.core.file_names import FilePattern, is_excluded

LST = FilePattern("LST-1.Run{run:05d}.{subrun:04d}.fits", {"run": "int", "subrun": "int"})

_literal = st.text(alphabet="ab01_.+-x() ", max_size=3)
_number = st.integers(0, 2**63 - 1) | st.integers(0, 100_000)
_word = st.text(alphabet=string.ascii_letters + string.digits + "_+-", min_size=1, max_size=8)


@st.composite
def patterns(draw: st.DrawFn) -> FilePattern:
    """Random patterns of up to three dimensions, those that are refused left out."""
    kinds = draw(st.lists(st.sampled_from(["int", "text"]), min_size=1, max_size=3))
    dimensions = {f"d{index}": kind for index, kind in enumerate(kinds)}
    pattern = draw(_literal)
    for name, kind in draw(st.permutations(list(dimensions.items()))):
        spec = draw(st.sampled_from(["", ":d", ":05d", ":03"])) if kind == "int" else ""
        pattern += f"{{{name}{spec}}}" + draw(_literal)
    try:
        return FilePattern(pattern, dimensions)
    except BadName:
        assume(False)
        raise


def _unit(draw: st.DataObject, pattern: FilePattern) -> DataId:
    try:
        return DataId.of(
            **{name: draw.draw(_number if kind == "int" else _word) for name, kind in pattern.dimensions.items()}
        )
    except BadName:
        assume(False)
        raise


@given(patterns(), st.data())
def test_a_name_reads_back_as_the_unit_that_it_was_written_for(pattern: FilePattern, data: st.DataObject) -> None:
    """P2."""
    unit = _unit(data, pattern)
    name = pattern.format(unit)
    assert pattern.match(name) == unit


@given(patterns(), st.data())
def test_two_units_never_share_a_name(pattern: FilePattern, data: st.DataObject) -> None:
    """P2: also for units whose values are alike."""
    alike = st.text(alphabet="a0_", min_size=1, max_size=4)
    units = []
    for _ in range(2):
        values = {n: data.draw(st.integers(0, 111) if k == "int" else alike) for n, k in pattern.dimensions.items()}
        try:
            units.append(DataId.of(**values))
        except BadName:
            assume(False)
    assert (pattern.format(units[0]) == pattern.format(units[1])) == (units[0] == units[1])


@given(patterns(), st.data())
def test_a_unit_has_one_name_only(pattern: FilePattern, data: st.DataObject) -> None:
    """P2: whatever matches is exactly what format would write."""
    name = pattern.format(_unit(data, pattern))
    place = data.draw(st.integers(0, len(name)))
    changed = name[:place] + data.draw(st.sampled_from(["0", "1", "_", "a", "\n", ""])) + name[place:]
    found = pattern.match(changed)
    assert found is None or pattern.format(found) == changed


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("LST-1.Run02008.0003.fits", DataId.of(run=2008, subrun=3)),
        ("LST-1.Run123456.10000.fits", DataId.of(run=123456, subrun=10000)),
        ("LST-1.Run00000.0000.fits", DataId.of(run=0, subrun=0)),
        ("LST-1.Run2008.0003.fits", None),
        ("LST-1.Run002008.0003.fits", None),
        ("LST-1.Run02008.0003.fits.tmp", None),
        ("xLST-1.Run02008.0003.fits", None),
        ("LST-1xRun02008.0003.fits", None),
        ("LST-1.Run-2008.0003.fits", None),
        ("LST-1.Run9223372036854775807.0003.fits", DataId.of(run=2**63 - 1, subrun=3)),
        ("LST-1.Run9223372036854775808.0003.fits", None),
    ],
)
def test_only_names_as_format_writes_them_match(name: str, unit: DataId | None) -> None:
    """P2."""
    assert LST.match(name) == unit


@pytest.mark.parametrize(
    "name",
    [
        "",
        "LST-1.Run02008.0003.fits\n",
        "LST-1.Run02008\x00.0003.fits",
        "../LST-1.Run02008.0003.fits",
        "LST-1.Run02008.0003.fits/..",
        "LST-1.Run٠٢٠٠٨.0003.fits",
        "LST-1.Run０２００８.0003.fits",
        "LST-1.Run02008.0003.fits" + "x" * 300,
        "LST-1.Run" + "9" * 300 + ".0003.fits",
        "LST-1.Run02008.\udcff0003.fits",
        "\ud800",
    ],
)
def test_hostile_names_match_nothing_and_raise_nothing(name: str) -> None:
    """S8."""
    assert LST.match(name) is None
    assert not is_excluded(name, ["*.tmp", "*.part"])


@given(st.text(alphabet=st.characters(), max_size=300))
@example("a..b")
@example("-a.fits")
def test_a_text_dimension_takes_only_what_a_data_id_can_hold(name: str) -> None:
    """S8: any text at all, surrogates included."""
    pattern = FilePattern("{part}.fits", {"part": "text"})
    for candidate in (name, f"{name}.fits"):
        found = pattern.match(candidate)
        assert found is None or pattern.format(found) == candidate


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("run{run:05d}.fits", "lacks {subrun}"),
        ("run{run}_{subrun}_{run}.fits", "{run} stands in it twice"),
        ("run{run}_{subrun}_{part}.fits", "{part} is not a dimension"),
        ("run{run}{subrun}.fits", "two ways"),
        ("run{run:05d}0{subrun}.fits", "two ways"),
        ("run{run:5d}_{subrun}.fits", "format '5d'"),
        ("run{run:x}_{subrun}.fits", "format 'x'"),
        ("run{run!r}_{subrun}.fits", "'!r'"),
        ("run{run_{subrun}.fits", "unexpected '{'"),
        ("run{run.real}_{subrun}.fits", "{run.real} is not a dimension"),
        ("run{}_{subrun}.fits", "{} is not a dimension"),
        ("a/{run}_{subrun}.fits", "one file's name"),
        ("a\n{run}_{subrun}.fits", "one file's name"),
    ],
)
def test_a_pattern_that_cannot_be_read_back_is_refused(pattern: str, words: str) -> None:
    """S8."""
    with pytest.raises(BadName) as caught:
        FilePattern(pattern, {"run": "int", "subrun": "int"})
    assert words in str(caught.value)
    assert caught.value.fix


def test_texts_around_a_number_are_refused_where_two_readings_exist() -> None:
    """P2: p_1x_2xq could be (p, 1, _2xq) or (p_1x, 2, q)."""
    with pytest.raises(BadName, match="two ways"):
        FilePattern("{a}_{run}x{b}", {"a": "text", "run": "int", "b": "text"})


@pytest.mark.parametrize("unit", [DataId.of(run=1), DataId.of(run=1, subrun="a"), DataId.of(run=1, subrun=1, x=1)])
def test_a_unit_of_other_dimensions_has_no_name(unit: DataId) -> None:
    """P2."""
    with pytest.raises(BadName, match="does not fit"):
        LST.format(unit)


def test_temporary_names_are_excluded_by_glob() -> None:
    """P3."""
    globs = ["*.tmp", "*.part", ".*"]
    assert is_excluded("run1.fits.tmp", globs)
    assert is_excluded(".run1.fits", globs)
    assert not is_excluded("run1.fits", globs)
    assert not is_excluded("run1.TMP", globs)
