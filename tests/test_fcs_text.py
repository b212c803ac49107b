"""TEXT, offsets and widths of files as instruments write them: right values, or a reason."""

from __future__ import annotations

import gzip
import os
import re
import warnings
from pathlib import Path

import anndata
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcm_estimators.exceptions import FcsError, InvalidInputError, ProcessingStateError
from fcm_estimators.io import get_spillover, read_fcs, write_fcs
from fcm_estimators.io.cells import cell_table
from fcm_estimators.io.decode import decode
from fcm_estimators.io.keywords import Notes, lookup, parse_text
from fcm_estimators.io.segment import open_segment
from fcm_estimators.preprocessing import Compensation
from tests.fcs_files import (
    DATA_START,
    assembled,
    described,
    packed_bits,
    text_segment,
    write_floats,
)

ROWS = [[1.5, 2.5], [3.5, 4.5]]
DATA = np.array(ROWS, dtype="<f4").tobytes()
# "$" begins keywords, and blanks around them are padding.
DELIMITERS = [d for d in map(chr, range(1, 127)) if not d.isalnum() and d not in "$ \t\r\n"]
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


def parsed(raw: bytes) -> tuple[list[tuple[str, str]], list[str]]:
    notes = Notes("a.fcs")
    pairs = parse_text(raw, notes)
    return pairs, [*notes.texts, *notes.groups]


def quietly(path: Path, **options):
    """Read a file in which something is guessed on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return read_fcs(path, **options)


def with_text(path: Path, text: bytes, **options) -> Path:
    path.write_bytes(assembled(text, DATA, **options))
    return path


# TEXT


@given(
    entries=st.dictionaries(words, st.one_of(st.just(""), words), max_size=8),
    delimiter=st.sampled_from(DELIMITERS),
)
def test_whatever_is_written_by_the_standard_is_read_back(entries, delimiter):
    names = [name.replace(delimiter, "").strip(" \t\r\n") for name in entries]
    values = [value.lstrip(delimiter) for value in entries.values()]
    legal = {name: value for name, value in zip(names, values, strict=True) if name}
    legal |= {"LAST": "value"}
    pairs, _ = parsed(text_segment(legal, delimiter))
    assert dict(pairs) == legal


@pytest.mark.parametrize("delimiter", "^.+?([|*\\\x0c\x1e,;@#\r")
def test_any_character_can_be_the_delimiter(tmp_path, delimiter):
    text = described(("A", "B"), P2S="CD3")
    path = with_text(tmp_path / "a.fcs", text_segment(text, delimiter))
    adata = read_fcs(path)
    assert adata.X.tolist() == ROWS
    assert adata.var_names.tolist() == ["A", "CD3"]


@pytest.mark.parametrize(
    ("raw", "pairs"),
    [
        (b"/$P1S//$P2S/CD3/", [("$P1S", ""), ("$P2S", "CD3")]),
        (b"/$OP//SPILL/x/", [("$OP", ""), ("SPILL", "x")]),
        (b"/A//B//C/1/", [("A", ""), ("B", ""), ("C", "1")]),
        (b"/A/1/B//", [("A", "1"), ("B", "")]),
        (b"/A/x//y/B/1/", [("A", "x/y"), ("B", "1")]),
        (b"/A/x///B/1/", [("A", "x/"), ("B", "1")]),
        (b"/A/x///", [("A", "x/")]),
        (b"/A/1/B/22", [("A", "1"), ("B", "22")]),
        (b"/A/1/B/22  \r\n", [("A", "1"), ("B", "22")]),
        (b"/\n $P1N/A/\n  $P2N/B/\n", [("$P1N", "A"), ("$P2N", "B")]),
        (b"/A/x\0\0/B/1/\0\0\0", [("A", "x"), ("B", "1")]),
        (b"/A/a$b$/B/$5 $P1N/", [("A", "a$b$"), ("B", "$5 $P1N")]),
        (b"/FJ_$TIMESTEP/.1/", [("FJ_$TIMESTEP", ".1")]),
        ("/A/\u03b1/".encode() + b"B/\xb5/", [("A", "\u03b1"), ("B", "\u00b5")]),
    ],
)
def test_text_is_read_as_it_is_meant_without_a_remark(raw, pairs):
    assert parsed(raw) == (pairs, [])


@pytest.mark.parametrize(
    ("raw", "pairs", "remark"),
    [
        (b"/A///x/B/1/", [("A", "/x"), ("B", "1")], "A is followed by 3 delimiters"),
        (b"/A////B/1/", [("A", "/"), ("B", "1")], "A is followed by 4 delimiters"),
        (b"/A/1//$PAR/2/", [("A", "1/$PAR"), ("2", "")], "doubled delimiter before [$]PAR"),
        (b"/A/1/B", [("A", "1"), ("B", "")], "ends after the keyword B"),
        (b"//A/1/", [("A", "1")], "delimiter where a keyword is expected"),
        (b"/$P1S/\xb5/", [("$P1S", "\u00b5")], "read as Latin-1"),
    ],
)
def test_what_is_ambiguous_is_told(raw, pairs, remark):
    found, remarks = parsed(raw)
    assert found == pairs
    assert re.search(remark, " ".join(remarks))


def test_the_standard_keyword_wins_then_the_first_and_both_differences_are_told():
    notes = Notes("a.fcs")
    pairs = [("EXP", "mine"), ("$exp", "theirs"), ("$P1S", "CD3"), ("$P1S", "CD4")]
    assert lookup(pairs, notes) == {"EXP": "theirs", "P1S": "CD3"}
    assert notes.texts == ["keyword $P1S stands there twice; 'CD3' was taken, 'CD4' ignored."]


def test_a_dollar_delimiter_is_refused(tmp_path):
    path = with_text(tmp_path / "a.fcs", text_segment(described(), "$"))
    with pytest.raises(FcsError, match="delimiter"):
        read_fcs(path)


@pytest.mark.parametrize("short", [1, 2, 4])
def test_the_end_of_the_last_value_is_not_lost(tmp_path, short):
    text = text_segment({**described(), "$P2S": "CD19", "$P2R": "262144"})
    path = with_text(tmp_path / "a.fcs", text, text_stop=58 + len(text) - 1 - short)
    assert read_fcs(path).var["range"].tolist() == [1024, 262144]


# Floats, numbers


def test_floats_are_linear_whatever_their_amplifier(tmp_path):
    path = write_floats(tmp_path / "a.fcs", ROWS, P1E="4,1", P2E="LOG")
    with pytest.warns(UserWarning, match=r"a\.fcs: \$P1E=4,1, \$P2E=LOG of floating-point"):
        adata = read_fcs(path)
    assert adata.X.tolist() == ROWS
    assert adata.var["range"].tolist() == [1024, 1024]


@pytest.mark.parametrize("text", ["0", "0,1", "0.0,0.0", "0,0,0", None])
def test_an_amplifier_of_zero_decades_is_no_remark(tmp_path, text):
    assert read_fcs(write_floats(tmp_path / "a.fcs", ROWS, P1E=text)).X.tolist() == ROWS


@pytest.mark.parametrize("text", ["NA", "inf", "nan", "-1"])
def test_floats_need_no_range(tmp_path, text):
    path = write_floats(tmp_path / "a.fcs", ROWS, P1R=text)
    with pytest.warns(UserWarning, match=rf"\$P1R is '{text}'"):
        adata = read_fcs(path)
    assert adata.X.tolist() == ROWS
    assert np.isnan(adata.var["range"].iloc[0])
    write_fcs(adata, tmp_path / "b.fcs")
    assert read_fcs(tmp_path / "b.fcs").var["range"].tolist() == [3.5, 1024]


def test_values_beyond_the_range_of_floats_stay(tmp_path):
    values = [[-5.0, 1e6], [1e9, 3.0]]
    for extra in ({}, {"P1G": "0.5"}):  # stored as they are, and decoded
        path = write_floats(tmp_path / "a.fcs", values, **extra)
        with pytest.warns(
            UserWarning, match=r"FL1-A \(up to 1e\+06, \$PnR 1.02e\+03\) with floats far"
        ):
            found = read_fcs(path).X
        assert found[:, 1].tolist() == [1e6, 3.0]


def test_time_beyond_its_range_and_floats_near_it_are_no_news(tmp_path):
    path = write_floats(tmp_path / "a.fcs", [[1e6, 1500.0]], ("Time", "FL1-A"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_fcs(path).X.tolist() == [[1e6, 1500.0]]


@pytest.mark.slow
def test_more_than_two_gigabytes_of_events(tmp_path):
    """The offsets do not fit HEADER, and a read of the system gives at most 2 GiB."""
    names = [f"FL{i}-A" for i in range(1, 25)]
    n_events = 2**31 // (4 * len(names)) + 1000
    size = n_events * 4 * len(names)
    text = described(names, n_events=n_events, n_bytes=size)
    path = tmp_path / "large.fcs"
    path.write_bytes(assembled(text_segment(text), b"", header_data=(0, 0)))
    last = np.arange(len(names), dtype="<f4")
    with path.open("r+b") as handle:
        handle.seek(DATA_START + size - last.nbytes)
        handle.write(last.tobytes())  # all others are a hole of zeros
    segment = open_segment(path)
    out = np.full((n_events, len(names)), np.nan, dtype=np.float32)
    decode(segment, out, list(range(len(names))), False)
    assert out[-1].tolist() == last.tolist()
    assert not out[:-1].any()


def test_a_decimal_comma_is_read_with_a_warning(tmp_path):
    path = write_floats(tmp_path / "a.fcs", ROWS, P1R="262144,0", P2G="0,5")
    with pytest.warns(UserWarning, match=r"\$P1R=262144,0, \$P2G=0,5 read with a decimal comma"):
        adata = read_fcs(path)
    assert adata.X.tolist() == [[1.5, 5.0], [3.5, 9.0]]


def test_a_blank_gain_is_one_and_the_gain_of_time_is_not_needed(tmp_path):
    names = ("Time", "FL1-A")
    path = write_floats(tmp_path / "a.fcs", ROWS, names, P1G="high", P2G=" ")
    with pytest.warns(UserWarning, match=r"P2G of 0 or blank; the gain counts as 1"):
        assert read_fcs(path).X.tolist() == ROWS


def test_a_step_of_zero_gives_no_seconds(tmp_path):
    path = write_floats(tmp_path / "a.fcs", ROWS, ("Time", "FL1-A"), TIMESTEP="0")
    assert read_fcs(path).X.tolist() == ROWS
    with pytest.raises(FcsError, match=r"\$TIMESTEP 0"):
        read_fcs(path, scale_time=True)


# Offsets


RIGHT = (DATA_START, DATA_START + 15)


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (RIGHT, (-32, -17)),
        (RIGHT, (60, 75)),
        (RIGHT, (DATA_START, DATA_START + 16)),
        (RIGHT, (DATA_START, DATA_START)),
        (RIGHT, (DATA_START, 0)),
        (RIGHT, (99_999, 100_014)),
        ((60, 75), RIGHT),
        ((DATA_START, 0), RIGHT),
        ((DATA_START, 12), RIGHT),
        ((DATA_START - 8, DATA_START + 15), RIGHT),
    ],
)
def test_the_offsets_that_fit_are_taken_with_a_warning(tmp_path, header, text):
    places = {"BEGINDATA": str(text[0]), "ENDDATA": str(text[1])}
    path = write_floats(tmp_path / "a.fcs", ROWS, header_data=header, **places)
    with pytest.warns(UserWarning, match=rf"bytes {RIGHT[0]} to {RIGHT[1]} were read"):
        assert read_fcs(path).X.tolist() == ROWS


@pytest.mark.parametrize("header", [(0, 0), ("", ""), (DATA_START, 99_999_999), RIGHT])
def test_offsets_that_agree_are_no_remark(tmp_path, header):
    path = write_floats(tmp_path / "a.fcs", ROWS, header_data=header)
    assert read_fcs(path).X.tolist() == ROWS


@pytest.mark.parametrize("missing", [{"BEGINDATA": None, "ENDDATA": None}, {"BEGINDATA": None}])
def test_offsets_may_stand_in_header_only(tmp_path, missing):
    assert read_fcs(write_floats(tmp_path / "a.fcs", ROWS, **missing)).X.tolist() == ROWS


def test_two_places_that_can_both_be_right_are_refused(tmp_path):
    path = write_floats(tmp_path / "a.fcs", ROWS, header_data=(RIGHT[0] - 8, RIGHT[1] - 8))
    with pytest.raises(FcsError, match="HEADER puts DATA at bytes"):
        read_fcs(path)


@pytest.mark.parametrize("text", [" ", "x", "-5", "1200", "99999999"])
def test_analysis_costs_nothing(tmp_path, text):
    path = write_floats(tmp_path / "a.fcs", ROWS, BEGINANALYSIS=text, ENDANALYSIS="0")
    assert read_fcs(path).X.tolist() == ROWS


def test_events_behind_two_to_the_31_bytes_are_read(tmp_path):
    start = 2**31 + 17
    places = {"BEGINDATA": str(start), "ENDDATA": str(start + 15)}
    text = text_segment(described(**places))
    path = tmp_path / "a.fcs"
    path.write_bytes(assembled(text, b"", header_data=(0, 0)))
    with path.open("r+b") as handle:
        handle.seek(start)
        handle.write(DATA)
    assert read_fcs(path).X.tolist() == ROWS
    os.truncate(path, start + 15)
    with pytest.raises(FcsError, match="truncated"):
        read_fcs(path)


def test_an_end_that_was_cut_to_32_bits_is_recognized(tmp_path):
    wrapped = str(RIGHT[1] - 2**32)
    path = write_floats(tmp_path / "a.fcs", ROWS, header_data=(0, 0), ENDDATA=wrapped)
    assert quietly(path).X.tolist() == ROWS


def test_fcs_2_tells_the_number_of_events_by_the_length_of_data(tmp_path):
    path = write_floats(tmp_path / "a.fcs", ROWS, version="2.0", TOT=None)
    with pytest.warns(UserWarning, match=r"\$TOT is absent; 2 events were read"):
        assert read_fcs(path).X.tolist() == ROWS
    path = write_floats(
        tmp_path / "b.fcs", ROWS, version="2.0", TOT=None, BEGINDATA=None,
        header_data=(DATA_START, DATA_START + 12),
    )  # fmt: skip
    with pytest.raises(FcsError, match=r"\$TOT"):
        read_fcs(path)


def test_a_packed_file_is_read_like_its_content(tmp_path):
    plain = write_floats(tmp_path / "tube.fcs", ROWS, P2S="CD3")
    packed = tmp_path / "tube.fcs.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    ours, theirs = read_fcs(packed), read_fcs(plain)
    assert ours.X.tolist() == theirs.X.tolist()
    assert ours.obs_names.equals(theirs.obs_names)
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(FcsError, match=r"tube\.fcs\.gz cannot be unpacked"):
        read_fcs(packed)


# Integers


@pytest.mark.parametrize("little", [True, False])
@given(
    bits=st.lists(st.integers(1, 64), min_size=1, max_size=5),
    n_events=st.integers(3, 40),
    seed=st.integers(0, 99),
)
def test_integers_of_any_width_are_read(tmp_path_factory, little, bits, n_events, seed):
    rng = np.random.default_rng(seed)
    values = np.column_stack(
        [rng.integers(0, 2**b, n_events, dtype=np.uint64, endpoint=False) if b < 64 else
         rng.integers(0, 2**63, n_events, dtype=np.uint64) for b in bits]
    )  # fmt: skip
    if all(width % 8 == 0 for width in bits):
        order = "little" if little else "big"
        data = b"".join(
            int(v).to_bytes(b // 8, order) for row in values for v, b in zip(row, bits, strict=True)
        )
    else:
        data = packed_bits(values, bits, little=little)
    ranges = {f"P{n}R": str(2**b) for n, b in enumerate(bits, start=1)}
    text = described(
        [f"C{i}" for i in range(len(bits))], n_events=n_events, n_bytes=len(data), bits=bits,
        DATATYPE="I", BYTEORD="1,2,3,4" if little else "4,3,2,1", **ranges,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("f") / "a.fcs"
    path.write_bytes(assembled(text_segment(text), data))
    found = quietly(path)
    # The length tells packed bits from words, unless both need the same bytes.
    assert np.array_equal(found.X, values.astype("f4"))


def test_ten_bits_in_words_of_sixteen_are_told_by_the_length(tmp_path):
    values = np.array([[1, 1023], [512, 7], [0, 3]], dtype="<u2")
    text = described(n_events=3, n_bytes=12, bits=10, DATATYPE="I", BYTEORD="1,2")
    path = tmp_path / "a.fcs"
    path.write_bytes(assembled(text_segment(text), values.tobytes()))
    with pytest.warns(UserWarning, match=r"\$PnB is 10 bits; .* words of 16 bits"):
        assert read_fcs(path).X.tolist() == values.tolist()


def test_parameters_may_have_types_of_their_own(tmp_path):
    table = np.array([(7, 0.5, 0.25), (9, 1.5, 2.5)], dtype="<u2,<f8,<f4")
    text = described(
        ("Time", "A", "B"), bits=(16, 64, 32), P1DATATYPE="I", P2DATATYPE="D", P1R="65536"
    )
    path = tmp_path / "a.fcs"
    path.write_bytes(assembled(text_segment(text), table.tobytes(), version="3.2"))
    assert read_fcs(path).X.tolist() == [[7, 0.5, 0.25], [9, 1.5, 2.5]]


# Beckman and several data sets


def twins(path: Path, **second: str | None) -> Path:
    """The same two events as FCS 2.0 integers with names and as FCS 3 with more bits."""
    low = np.array([[5, 900, 30], [7, 20, 1000]], dtype="<u2").tobytes()
    names = ("FS Lin", "FL1 Log", "FL2 Log")
    text = described(
        names, bits=16, DATATYPE="I", BYTEORD="1,2", NEXTDATA=str(DATA_START + len(low)),
        BEGINDATA=None, ENDDATA=None, P1S="FS Lin", P2S="CD3-FITC", P3S="CD4-PE",
        DFC1TO2="12.5", DFC2TO1="2", DFC1TO7="3",
    )  # fmt: skip
    first = assembled(text_segment(text), low, version="2.0")
    high = np.array([[5000, 900_000, 30_000], [7000, 20_000, 1_000_000]], dtype="<u4").tobytes()
    text = described(
        ("FS", "FL1", "FL2"), DATATYPE="I", P1R="1048576", P2R="1048576", P3R="1048576", **second
    )
    path.write_bytes(first + assembled(text_segment(text), high, version="3.0"))
    return path


def test_the_fcs_3_data_set_takes_names_and_matrix_of_its_twin(tmp_path):
    path = twins(tmp_path / "a.lmd")
    with (
        pytest.warns(UserWarning, match="2 data sets .* Data set 1 was read"),
        pytest.warns(UserWarning, match=r"\$P2S=CD3-FITC of FL1 Log"),
        pytest.warns(UserWarning, match=r"the spillover matrix is the \$DFCiTOj"),
    ):
        adata = read_fcs(path)
    assert adata.X.tolist() == [[5000, 900_000, 30_000], [7000, 20_000, 1_000_000]]
    assert adata.var_names.tolist() == ["FS", "CD3-FITC", "CD4-PE"]
    assert not adata.var["compensated"].any()
    assert get_spillover(adata, "a").loc["FL1", "FL2"] == 0.125
    assert Compensation().fit_transform(adata).var["compensated"].tolist() == [False, True, True]


def test_names_of_the_data_set_itself_are_kept(tmp_path):
    path = twins(tmp_path / "a.lmd", P2S="CD8", SPILLOVER="2,FL1,FL2,1,0,0.5,1")
    adata = quietly(path)
    assert adata.var_names.tolist() == ["FS", "CD8", "CD4-PE"]
    assert get_spillover(adata, "a").loc["FL2", "FL1"] == 0.5


def test_a_twin_with_other_events_lends_nothing(tmp_path):
    path = tmp_path / "a.lmd"
    twins(path)
    path.write_bytes(path.read_bytes().replace(b"$TOT/2/", b"$TOT/1/", 1))
    assert quietly(path, dataset=1).var_names.tolist() == ["FS", "FL1", "FL2"]


def test_a_twin_is_found_behind_the_data_set_that_is_asked_for(tmp_path):
    path = tmp_path / "a.fcs"
    low = np.array([[5, 900], [7, 20]], dtype="<u2").tobytes()
    high = np.array([[5000, 900_000], [7000, 20_000]], dtype="<u4").tobytes()
    more = described(
        ("FS", "FL1"), DATATYPE="I", P1R="1048576", P2R="1048576",
        NEXTDATA=str(DATA_START + len(high)),
    )  # fmt: skip
    fewer = described(
        ("FS Lin", "FL1 Log"), bits=16, DATATYPE="I", BYTEORD="1,2", P2S="CD3-FITC",
        BEGINDATA=None, ENDDATA=None,
    )  # fmt: skip
    modern = assembled(text_segment(more), high, version="3.0")
    path.write_bytes(modern + assembled(text_segment(fewer), low, version="2.0"))
    with pytest.warns(UserWarning, match=r"\$P2S=CD3-FITC of FL1 Log"):
        assert read_fcs(path, dataset=0).var_names.tolist() == ["FS", "CD3-FITC"]


@pytest.mark.parametrize("between", [b"", b"00000000"])
def test_a_data_set_that_no_keyword_leads_to_is_told(tmp_path, between):
    path = tmp_path / "a.fcs"
    one = write_floats(path, ROWS).read_bytes()
    path.write_bytes(one + between + one)
    start = len(one) + len(between)
    with pytest.warns(UserWarning, match=rf"starts at byte {start}, but \$NEXTDATA is 0"):
        assert read_fcs(path).X.tolist() == ROWS
    path.write_bytes(path.read_bytes()[start:])
    assert read_fcs(path).X.tolist() == ROWS


@pytest.mark.parametrize(
    ("span", "largest", "origin"),
    [(1 << 24, (1 << 24) - 1, "NonDataModified"), (1 << 32, (1 << 24) + 1, "DataModified")],
)
def test_integers_that_float32_rounds_are_told_and_count_as_modified(
    tmp_path, span, largest, origin
):
    source = tmp_path / "a.fcs"
    text = described(DATATYPE="I", P1R="1024", P2R=str(span))
    source.write_bytes(
        assembled(text_segment(text), np.array([[1, largest], [3, 9]], dtype="<u4").tobytes())
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        adata = read_fcs(source)
        write_fcs(adata, tmp_path / "b.fcs", source=source)
    rounded = any("FL1-A with integers above 2^24" in str(entry.message) for entry in told)
    assert rounded == (int(adata.X[0, 1]) != largest) == (origin == "DataModified")
    content = (tmp_path / "b.fcs").read_bytes()
    pairs, _ = parsed(content[int(content[10:18]) : int(content[18:26]) + 1])
    assert dict(pairs)["$ORIGINALITY"] == origin


def test_what_the_instrument_compensated_is_not_compensated_again(tmp_path):
    path = twins(tmp_path / "a.lmd")
    with pytest.warns(UserWarning, match=r"\$DFCiTOj is there, .*FL1 Log, FL2 Log"):
        adata = read_fcs(path, dataset=0)
    assert adata.X.tolist() == [[5, 900, 30], [7, 20, 1000]]
    assert adata.var["compensated"].tolist() == [False, True, True]
    assert get_spillover(adata, "a").loc["FL2 Log", "FL1 Log"] == 0.02
    with pytest.raises(ProcessingStateError, match="Already compensated"):
        Compensation().fit_transform(adata)
    for source in (None, path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            write_fcs(adata, tmp_path / "b.fcs", source=source, dataset=0 if source else None)
        again = read_fcs(tmp_path / "b.fcs")
        assert again.var["compensated"].tolist() == [False, True, True]
        assert again.X.tolist() == adata.X.tolist()


def test_the_record_of_the_instrument_can_be_overruled(tmp_path):
    adata = quietly(twins(tmp_path / "a.lmd"), dataset=0, instrument_compensated=False)
    assert not adata.var["compensated"].any()
    assert Compensation().fit_transform(adata).var["compensated"].sum() == 2


def test_all_data_sets_are_read_without_the_older_form_of_the_same_events(tmp_path):
    path = twins(tmp_path / "a.lmd")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        adata = read_fcs(path, dataset="all")
    told = " ".join(str(w.message) for w in told)
    assert "data set 0 (FCS 2.0) holds the same events as another one and was left out" in told
    assert "$P2S=CD3-FITC of FL1 Log" in told
    assert adata.X.tolist() == [[5000, 900_000, 30_000], [7000, 20_000, 1_000_000]]
    assert adata.obs["sample"].unique().tolist() == ["a"]


def test_channels_that_an_instrument_has_unmixed_are_compensated(tmp_path):
    types = {"P1TYPE": "Forward_Scatter", "P2TYPE": "Unmixed_Fluorescence"}
    path = write_floats(tmp_path / "a.fcs", ROWS, version="3.2", P2S="CD3", **types)
    adata = read_fcs(path)
    assert adata.var["compensated"].tolist() == [False, True]
    write_fcs(adata, tmp_path / "b.fcs")
    write_fcs(adata, tmp_path / "c.fcs", source=path)
    for name in ("b.fcs", "c.fcs"):
        assert read_fcs(tmp_path / name).var["compensated"].tolist() == [False, True]


def test_no_events_although_there_are_data(tmp_path):
    path = write_floats(tmp_path / "a.fcs", ROWS, TOT="0")
    with pytest.raises(FcsError, match=r"a.fcs has \$TOT = 0, but DATA of 16 bytes"):
        read_fcs(path)


def test_files_that_only_differ_in_the_ending_keep_it(tmp_path):
    paths = [write_floats(tmp_path / name, ROWS) for name in ("t.001", "t.002", "u.003")]
    adata = read_fcs(paths)
    assert adata.obs["sample"].cat.categories.tolist() == ["t.001", "t.002", "u"]
    with pytest.raises(InvalidInputError, match=r"Sample names repeat: t.001"):
        read_fcs([paths[0], paths[0]])


def test_all_data_sets_become_samples(tmp_path):
    path = tmp_path / "run.fcs"
    one = write_floats(path, ROWS, NEXTDATA=str(DATA_START + 16)).read_bytes()
    two = write_floats(path, [[8.0, 9.0]]).read_bytes()
    path.write_bytes(one + two)
    adata = read_fcs(path, dataset="all")
    assert adata.obs_names.tolist() == ["run_0:0", "run_0:1", "run_1:0"]
    assert adata.X.tolist() == [*ROWS, [8.0, 9.0]]
    single = write_floats(tmp_path / "one.fcs", ROWS)
    assert read_fcs(single, dataset="all").obs_names.tolist() == ["one:0", "one:1"]
    with pytest.raises(InvalidInputError, match="Sample names repeat: run_0"):
        read_fcs([path, single], dataset="all", sample_names=["run", "run_0"])


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 12_345])
def test_cells_are_named_by_sample_and_position(tmp_path, count):
    paths = [write_floats(tmp_path / f"{n}.fcs", [[1.0, 2.0]] * count) for n in "ab"]
    expected = [f"{sample}:{event}" for sample in "ab" for event in range(count)]
    assert read_fcs(paths).obs_names.tolist() == expected


# Writing with the source


@given(
    st.lists(
        st.tuples(st.text(max_size=5), st.sampled_from([1, 2, 999, 1000, 1001, 2000])),
        min_size=1,
        max_size=3,
        unique_by=lambda pair: pair[0],
    )
)
def test_names_of_cells_count_the_events_of_each_sample(samples):
    names, counts = zip(*samples, strict=True)
    table = cell_table(names, counts)
    expected = [f"{name}:{i}" for name, count in samples for i in range(count)]
    assert table.index.tolist() == expected
    assert table.index.is_unique
    assert (table["sample"].astype(str) + ":" + table["event"].astype(str)).tolist() == expected


def test_reading_changes_no_setting_of_anndata(tmp_path):
    path = write_floats(tmp_path / "a.fcs", ROWS)
    before = anndata.settings.check_uniqueness
    with anndata.settings.override(check_uniqueness=not before):
        read_fcs(path)
        assert anndata.settings.check_uniqueness is not before
    read_fcs(path)
    assert anndata.settings.check_uniqueness is before


def test_keywords_of_the_source_come_back_letter_by_letter(tmp_path):
    kept = {
        "$CYT": "X", "EXP": "mine", "$EXP": "theirs", "SPILLOVER": "2,FSC-A,FL1-A,1,0,0,1",
        "FJ_$TIMESTEP": ".01", "$OP": " a$b$ ", "path": "C:/data//x/", "Mixed Case": "y",
        "$P2V": "450", "P2DISPLAY": "LOG", "VOL": "17",
    }  # fmt: skip
    text = text_segment({**described(P2S=" CD3$ "), **kept})
    source = with_text(tmp_path / "a.fcs", text)
    adata = read_fcs(source)
    assert adata.var_names.tolist() == ["FSC-A", "CD3$"]
    write_fcs(adata, tmp_path / "b.fcs", source=source)
    content = (tmp_path / "b.fcs").read_bytes()
    pairs, remarks = parsed(content[int(content[10:18]) : int(content[18:26]) + 1])
    assert remarks == []
    written = dict(pairs)
    assert {name: written[name] for name in kept} == kept
    assert written["$P2S"] == " CD3$ "
    assert written["$ORIGINALITY"] == "NonDataModified"


def test_empty_keywords_are_left_out_and_listed(tmp_path):
    text = text_segment({**described(), "$OP": "", "$CYT": "X", "$FIL": ""})
    source = with_text(tmp_path / "a.fcs", text)
    adata = read_fcs(source)
    with pytest.warns(UserWarning, match=r"not written: \$OP, \$FIL\."):
        write_fcs(adata, tmp_path / "b.fcs", source=source)
    assert read_fcs(tmp_path / "b.fcs", keep_keywords=["CYT"]).uns["fcs"]["keywords"]["CYT"] == "X"


def test_nan_is_the_same_as_nan(tmp_path):
    rows = [[np.nan, 2.0], [3.0, np.nan]]
    source = write_floats(tmp_path / "a.fcs", rows)
    write_fcs(read_fcs(source), tmp_path / "b.fcs", source=source)
    np.testing.assert_array_equal(read_fcs(tmp_path / "b.fcs").X, rows)


@pytest.mark.parametrize("marker", ["CD3|!~\x0c", "CD3|CD28^!~*\x0c", "a\x0c|/!~\\*\x1ez"])
def test_the_writer_finds_a_delimiter_or_doubles_it(tmp_path, marker):
    adata = read_fcs(write_floats(tmp_path / "a.fcs", ROWS))
    adata.var["marker"] = ["", marker]
    write_fcs(adata, tmp_path / "b.fcs")
    assert read_fcs(tmp_path / "b.fcs").var["marker"].tolist() == ["", marker]


def test_keywords_that_leave_no_delimiter_are_refused_in_words(tmp_path):
    adata = read_fcs(write_floats(tmp_path / "a.fcs", ROWS))
    adata.uns["fcs"]["keywords"]["odd\x0c|/!~\\*\x1e"] = np.array(["x"], dtype=object)
    with pytest.raises(InvalidInputError, match="no character to separate them"):
        write_fcs(adata, tmp_path / "b.fcs")
