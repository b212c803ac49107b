from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import anndata as ad
import flowio
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fcm_estimators.exceptions import (
    FcmError,
    FcsError,
    InvalidInputError,
    MissingKeyError,
    PanelMismatchError,
    ProcessingStateError,
)
from fcm_estimators.io import get_spillover, read_fcs, write_fcs
from fcm_estimators.io.record import pack_fcs_record
from tests.helpers import data_home

SPILL = "2,FL1-A,FL2-A,1,0.25,0.125,1"


def fcs_bytes(
    data: bytes,
    parameters: list[dict[str, str]],
    n_events: int,
    *,
    version: str = "3.1",
    delimiter: str = "/",
    start: int | None = None,
    size: int | None = None,
    header_data: tuple[int, int] | None = None,
    supplement: dict[str, str] | None = None,
    **keywords: str | None,
) -> bytes:
    """One data set, written byte by byte from the standard; None removes a keyword."""
    text = {
        "$BYTEORD": "1,2,3,4",
        "$DATATYPE": "F",
        "$MODE": "L",
        "$NEXTDATA": "0",
        "$PAR": str(len(parameters)),
        "$TOT": str(n_events),
    }
    for n, parameter in enumerate(parameters, start=1):
        described = {"B": "32", "E": "0,0", "R": "1024", "N": f"FL{n}-A", **parameter}
        text |= {
            f"$P{n}{letter}": value for letter, value in described.items() if value is not None
        }
    begin = 2048 if start is None else start
    end = begin + (len(data) if size is None else size) - 1
    text |= {"$BEGINDATA": str(begin), "$ENDDATA": str(end)}
    extra = b""
    if supplement is not None:
        extra = (delimiter + delimiter.join(f for kv in supplement.items() for f in kv)).encode()
        extra += delimiter.encode()
        first = 2048 + len(data)
        text |= {"$BEGINSTEXT": str(first), "$ENDSTEXT": str(first + len(extra) - 1)}
    text |= {name if name[0] == "$" else name.replace("_", " "): v for name, v in keywords.items()}
    pairs = [f for name, value in text.items() if value is not None for f in (name, value)]
    body = (delimiter + delimiter.join(pairs) + delimiter).encode()
    head_data = (begin, end) if header_data is None else header_data
    header = f"FCS{version}    " + "".join(
        f"{n:>8d}" for n in (58, 58 + len(body) - 1, *head_data, 0, 0)
    )
    return (header.encode() + body).ljust(2048) + data + extra


def float_bytes(values: np.ndarray) -> bytes:
    return np.asarray(values, dtype="<f4").tobytes()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def simple(
    path: Path,
    values: np.ndarray | list[list[float]],
    parameters: list[dict[str, str]] | None = None,
    **options: object,
) -> Path:
    """A float file; by default its parameters are called FL1-A, FL2-A, ..."""
    values = np.atleast_2d(np.asarray(values, dtype="f4"))
    parameters = [{} for _ in values.T] if parameters is None else parameters
    return write(path, fcs_bytes(float_bytes(values), parameters, len(values), **options))


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# Values


@pytest.mark.filterwarnings("ignore:.*far beyond .PnR:UserWarning")
@pytest.mark.parametrize(("order", "code"), [("1,2,3,4", "<f4"), ("4,3,2,1", ">f4")])
@given(rows=st.lists(st.tuples(floats, floats, floats), min_size=1, max_size=20))
def test_float_values_come_back_bit_by_bit(tmp_path_factory, order, code, rows):
    values = np.array(rows, dtype="f4")
    content = fcs_bytes(
        values.astype(code).tobytes(), [{}, {}, {}], len(values), **{"$BYTEORD": order}
    )
    path = write(tmp_path_factory.mktemp("f") / "a.fcs", content)
    adata = read_fcs(path)
    assert adata.X.dtype == np.float32
    assert np.array_equal(adata.X, values)


def test_doubles_become_the_nearest_float32(tmp_path):
    values = np.array([[1 / 3, 2e5 / 7]])
    parameters = [{}, {"R": "262144"}]
    content = fcs_bytes(values.astype("<f8").tobytes(), parameters, 1, **{"$DATATYPE": "D"})
    adata = read_fcs(write(tmp_path / "a.fcs", content))
    assert np.array_equal(adata.X, values.astype("f4"))


@pytest.mark.parametrize("order", ["1,2,3,4", "4,3,2,1"])
def test_integers_of_mixed_width_are_read_as_flowio_reads_them(tmp_path, rng, order):
    widths = [8, 16, 32, 16]
    endian = "<" if order == "1,2,3,4" else ">"
    layout = np.dtype([(f"c{i}", f"{endian}u{w // 8}") for i, w in enumerate(widths)])
    table = np.zeros(50, dtype=layout)
    for i, w in enumerate(widths):
        table[f"c{i}"] = rng.integers(0, 2**w, 50)
    parameters = [{"B": str(w), "R": str(2**w)} for w in widths]
    content = fcs_bytes(table.tobytes(), parameters, 50, **{"$BYTEORD": order, "$DATATYPE": "I"})
    path = write(tmp_path / "a.fcs", content)
    expected = np.column_stack([table[f"c{i}"] for i in range(4)])
    with pytest.warns(UserWarning, match=r"with integers above 2\^24"):
        assert np.array_equal(read_fcs(path).X, expected.astype("f4"))
    assert np.array_equal(flowio.FlowData(path).as_array(), expected)


def test_bits_above_the_range_of_an_integer_are_ignored(tmp_path):
    # $PnR = 1000 is served by 10 bits: the standard masks with the next power of 2.
    stored = np.array([[0x0401, 0xFC00 | 999]], dtype="<u2")
    content = fcs_bytes(
        stored.tobytes(), [{"B": "16", "R": "1024"}, {"B": "16", "R": "1000"}], 1,
        **{"$DATATYPE": "I", "$BYTEORD": "1,2"},
    )  # fmt: skip
    assert read_fcs(write(tmp_path / "a.fcs", content)).X.tolist() == [[1.0, 999.0]]


def test_log_amplifiers_give_f2_times_ten_to_the_f1_x_over_range(tmp_path):
    stored = np.array([[0, 512], [256, 1023]], dtype="<u2")
    parameters = [{"B": "16", "R": "1024", "E": "4,1"}, {"B": "16", "R": "1024", "E": "3,0.5"}]
    content = fcs_bytes(stored.tobytes(), parameters, 2, **{"$DATATYPE": "I"})
    adata = read_fcs(write(tmp_path / "a.fcs", content))
    expected = [[1, 0.5 * 10**1.5], [10, 0.5 * 10 ** (3 * 1023 / 1024)]]
    np.testing.assert_allclose(adata.X, expected, rtol=1e-6)
    np.testing.assert_allclose(adata.var["range"], [1e4, 500])


def test_a_log_offset_of_zero_is_read_as_one(tmp_path):
    stored = np.array([[256]], dtype="<u2")
    content = fcs_bytes(stored.tobytes(), [{"B": "16", "E": "4,0"}], 1, **{"$DATATYPE": "I"})
    np.testing.assert_allclose(read_fcs(write(tmp_path / "a.fcs", content)).X, 10, rtol=1e-6)


def test_gain_divides_every_channel_but_time(tmp_path):
    parameters = [{"G": "4"}, {"N": "Time", "G": "0.01"}, {"G": "0"}, {}]
    path = simple(tmp_path / "a.fcs", [[8, 8, 8, 8]], parameters)
    with pytest.warns(UserWarning, match=r"P3G of 0 or blank"):
        adata = read_fcs(path)
    assert adata.X.tolist() == [[2, 8, 8, 8]]
    assert adata.var["range"].tolist() == [256, 1024, 1024, 1024]


def test_decoding_agrees_with_flowio_in_all_but_time(tmp_path, rng):
    parameters = [{"G": "8"}, {"E": "4,1"}, {"E": "2,0.1", "G": "2"}, {"N": "Time"}]
    values = rng.integers(0, 1024, (30, 4)).astype("<u4")
    content = fcs_bytes(values.tobytes(), parameters, 30, **{"$TIMESTEP": "0.5", "$DATATYPE": "I"})
    path = write(tmp_path / "a.fcs", content)
    theirs = flowio.FlowData(path).as_array()
    ours = read_fcs(path).X
    np.testing.assert_allclose(ours[:, :3], theirs[:, :3], rtol=1e-6)
    assert np.array_equal(ours[:, 3], values[:, 3])
    np.testing.assert_allclose(read_fcs(path, scale_time=True).X, theirs, rtol=1e-6)


def test_seconds_need_a_timestep(tmp_path):
    path = simple(tmp_path / "a.fcs", [[1.0]], [{"N": "Time"}])
    with pytest.raises(FcsError, match=r"a\.fcs has no \$TIMESTEP"):
        read_fcs(path, scale_time=True)


# Names, kinds, record


@pytest.mark.parametrize(
    ("channels", "markers", "names"),
    [
        (["FSC-A", "FL1-A"], [None, None], ["FSC-A", "FL1-A"]),
        (["FSC-A", "FL1-A"], [None, "CD3"], ["FSC-A", "CD3"]),
        (["FL1-A", "FL1-H"], ["CD3", "CD3"], ["CD3 (FL1-A)", "CD3 (FL1-H)"]),
        (["FL1-A", "FL1-A"], [None, None], ["FL1-A", "FL1-A [P2]"]),
        ([None, "FL2-A"], [None, " "], ["P1", "FL2-A"]),
        (["CD3", "FL2-A"], [None, "CD3"], ["CD3", "CD3 (FL2-A)"]),
    ],
)
def test_marker_names_are_unique_and_tell_the_marker_first(tmp_path, channels, markers, names):
    parameters = [{"N": c, "S": m} for c, m in zip(channels, markers, strict=True)]
    adata = read_fcs(simple(tmp_path / "a.fcs", [[1, 2]], parameters))
    assert adata.var_names.tolist() == names
    assert adata.var["channel"].is_unique
    assert adata.var["marker"].tolist() == [(m or "").strip() for m in markers]


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "A", "B", "A [P2]"]), st.sampled_from(["", "A", "C"])),
        min_size=1,
        max_size=6,
    )
)
def test_whatever_the_file_calls_them_markers_and_channels_are_unique(tmp_path_factory, pairs):
    parameters = [{"N": channel or " ", "S": marker or " "} for channel, marker in pairs]
    path = simple(tmp_path_factory.mktemp("f") / "a.fcs", [[1.0] * len(pairs)], parameters)
    var = read_fcs(path).var
    assert var.index.is_unique
    assert var["channel"].is_unique


def test_kinds_follow_the_channel_names(tmp_path):
    kinds = {
        "Time": "time", "TIME": "time", "HDR-T": "time", "FSC-A": "scatter", "SSC-B-H": "scatter",
        "FS INT LIN": "scatter", "Violet SSC-A": "scatter", "Comp-FITC-A": "fluorescence",
        "PE-Cy7-A": "fluorescence", "FSPE": "fluorescence", "Width": "other", "Sample ID": "other",
    }  # fmt: skip
    path = simple(tmp_path / "a.fcs", [[1] * len(kinds)], [{"N": name} for name in kinds])
    var = read_fcs(path).var
    assert dict(zip(var["channel"], var["kind"], strict=True)) == kinds
    assert var.index[var["compensated"]].tolist() == ["Comp-FITC-A"]
    assert set(var["transform"]) == {"none"}


def test_a_mass_cytometer_measures_no_fluorescence(tmp_path):
    names = ["Time", "Event_length", "Er168Di", "(Nd142)Dd", "Center2"]
    path = simple(tmp_path / "a.fcs", [[1] * 5], [{"N": name} for name in names])
    assert read_fcs(path).var["kind"].tolist() == ["time", "other", "mass", "mass", "other"]


def test_only_technical_keywords_are_kept_unless_asked_for(tmp_path):
    private = {"$SRC": "Jane Doe", "$OP": "John", "$DATE": "01-JAN-2020", "GUID": "123-abc"}
    private |= {"TUBE NAME": "Doe J", "$FIL": "doe.fcs", "EXPERIMENT NAME": "Doe"}
    path = simple(tmp_path / "a.fcs", [[1.0]], **{"$CYT": "X20"}, **private)
    kept = read_fcs(path).uns["fcs"]["keywords"]
    assert {name: values.tolist() for name, values in kept.items()} == {"CYT": ["X20"]}
    asked = read_fcs(path, keep_keywords=["$src", "Tube Name"]).uns["fcs"]["keywords"]
    assert asked["SRC"].tolist() == ["Jane Doe"]
    assert asked["TUBE NAME"].tolist() == ["Doe J"]
    with pytest.raises(MissingKeyError, match="No file has the keyword TUBE"):
        read_fcs(path, keep_keywords=["tube"])


def test_supplemental_text_is_read(tmp_path):
    more = {"$P1S": "CD3", "SPILL": "1,FL1-A,1", "$CYT": "A//B"}
    adata = read_fcs(simple(tmp_path / "a.fcs", [[1.0]], supplement=more))
    assert adata.var_names.tolist() == ["CD3"]
    assert adata.uns["fcs"]["keywords"]["CYT"].tolist() == ["A/B"]
    assert get_spillover(adata, "a").shape == (1, 1)


@pytest.mark.parametrize("keyword", ["$SPILLOVER", "SPILL", "COMP"])
def test_spillover_is_labelled_whatever_its_keyword(tmp_path, keyword):
    adata = read_fcs(simple(tmp_path / "a.fcs", [[1, 2]], **{keyword: SPILL}))
    spill = get_spillover(adata, "a")
    assert spill.loc["FL1-A", "FL2-A"] == 0.25
    assert spill.loc["FL2-A", "FL1-A"] == 0.125


def test_spillover_may_name_parameters_by_number(tmp_path):
    adata = read_fcs(simple(tmp_path / "a.fcs", [[1, 2]], SPILL="2,1,2,1,0.25,0.125,1"))
    assert get_spillover(adata, "a").columns.tolist() == ["FL1-A", "FL2-A"]


@pytest.mark.parametrize(
    "text",
    ["x", "2,FL1-A,FL2-A,1,0,0", "2,FL1-A,FL2-A,1,0,b,1", "-1", "1,FL1-A,nan",
     "2,FL1-A,FL1-A,1,0,0,1"],
)  # fmt: skip
def test_a_spillover_that_cannot_be_read_costs_the_compensation_not_the_events(tmp_path, text):
    path = simple(tmp_path / "a.fcs", [[1, 2]], SPILL=text)
    with pytest.warns(UserWarning, match=r"a\.fcs: keyword SPILL is not a spillover matrix"):
        adata = read_fcs(path)
    assert adata.X.tolist() == [[1, 2]]
    assert get_spillover(adata, "a") is None


def test_a_spillover_that_can_be_read_stands_in_for_one_that_cannot(tmp_path):
    path = simple(tmp_path / "a.fcs", [[1, 2]], **{"$SPILLOVER": "2,FL1-A", "SPILL": SPILL})
    with pytest.warns(UserWarning, match="keyword SPILLOVER"):
        assert get_spillover(read_fcs(path), "a").loc["FL1-A", "FL2-A"] == 0.25


def test_a_matrix_without_channel_names_is_ignored_with_a_warning(tmp_path):
    path = simple(tmp_path / "a.fcs", [[1, 2]], **{"$COMP": "2,1,0,0,1"})
    with pytest.warns(UserWarning, match="names no channels"):
        assert get_spillover(read_fcs(path), "a") is None


def test_an_unknown_sample_has_no_spillover_to_give(tmp_path):
    adata = read_fcs(simple(tmp_path / "a.fcs", [[1.0]]))
    with pytest.raises(MissingKeyError, match="it lists a"):
        get_spillover(adata, "b")
    del adata.uns["fcs"]
    with pytest.raises(MissingKeyError, match='no "fcs" record'):
        get_spillover(adata, "a")


def test_the_record_refuses_lists_that_do_not_fit():
    with pytest.raises(InvalidInputError, match="one of each per sample"):
        pack_fcs_record(["a", "b"], [{}], [1], [None])
    with pytest.raises(InvalidInputError, match="unique"):
        pack_fcs_record(["a", "a"], [{}, {}], [1, 1], [None, None])
    skewed = pd.DataFrame(np.eye(2), index=["x", "y"], columns=["y", "x"])
    with pytest.raises(InvalidInputError, match="same unique"):
        pack_fcs_record(["a"], [{}], [1], [skewed])


# Several data sets in a file


def two_segments(first_version: str, second_version: str) -> bytes:
    second = fcs_bytes(float_bytes([[7, 8, 9]]), [{}, {}, {}], 1, version=second_version)
    step = {"$NEXTDATA": str(2048 + 8)}
    return fcs_bytes(float_bytes([[1, 2]]), [{}, {}], 1, version=first_version, **step) + second


def test_the_first_of_several_data_sets_is_read_and_all_are_listed(tmp_path):
    path = write(tmp_path / "a.fcs", two_segments("3.0", "3.1"))
    with pytest.warns(UserWarning, match=r"2 data sets.*dataset=0: FCS 3.0.*dataset=1: FCS 3.1"):
        assert read_fcs(path).X.tolist() == [[1, 2]]
    assert read_fcs(path, dataset=0).X.tolist() == [[1, 2]]
    assert read_fcs(path, dataset=1).X.tolist() == [[7, 8, 9]]
    for outside in (2, -1):
        with pytest.raises(InvalidInputError, match=r"holds 2 data set\(s\)"):
            read_fcs(path, dataset=outside)


@pytest.mark.parametrize(("versions", "values"), [("23", [[7, 8, 9]]), ("32", [[1, 2]])])
def test_the_only_fcs_3_data_set_of_an_lmd_file_is_the_default(tmp_path, versions, values):
    path = write(tmp_path / "a.lmd", two_segments(f"{versions[0]}.0", f"{versions[1]}.0"))
    with pytest.warns(UserWarning, match=r"a\.lmd: there are 2 data sets"):
        assert read_fcs(path).X.tolist() == values


def test_a_promised_data_set_that_is_not_there_is_an_error(tmp_path):
    path = write(tmp_path / "a.fcs", two_segments("3.0", "3.1")[: 2048 + 8] + b"  ")
    with pytest.raises(FcsError, match=r"a\.fcs: \$NEXTDATA promises"):
        read_fcs(path)
    assert read_fcs(path, dataset=0).n_obs == 1


def test_a_next_data_set_at_the_end_of_the_file_is_none_with_a_warning(tmp_path):
    path = write(tmp_path / "a.fcs", two_segments("3.0", "3.1")[: 2048 + 8])
    with pytest.warns(UserWarning, match=r"a\.fcs: \$NEXTDATA is 2056, the end of the file"):
        assert read_fcs(path).X.tolist() == [[1, 2]]


# Cohorts


def cohort(tmp_path: Path) -> list[Path]:
    one = [{"N": "Time"}, {"S": "CD3"}, {"S": "CD19"}]
    two = [one[2] | {"N": "FL3-A"}, one[0], one[1] | {"N": "FL2-A"}]
    return [
        simple(tmp_path / "z.fcs", [[1, 2, 3], [4, 5, 6]], one, SPILL="2,FL2-A,FL3-A,1,.2,.1,1"),
        simple(tmp_path / "a.fcs", [[9, 7, 8]], two, **{"$CYT": "X"}),
    ]


def test_files_are_matched_by_marker_in_the_order_of_the_first(tmp_path):
    adata = read_fcs(cohort(tmp_path))
    assert adata.var_names.tolist() == ["Time", "CD3", "CD19"]
    assert adata.X.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert adata.obs["sample"].cat.categories.tolist() == ["z", "a"]
    assert adata.obs_names.tolist() == ["z:0", "z:1", "a:0"]
    assert adata.obs["event"].tolist() == [0, 1, 0]
    assert adata.obs["event"].dtype == np.int64
    assert adata.uns["fcs"]["n_events"].tolist() == [2, 1]
    assert adata.uns["fcs"]["keywords"]["CYT"].tolist() == ["", "X"]
    assert get_spillover(adata, "z").shape == (2, 2)
    assert get_spillover(adata, "a") is None


def test_a_cohort_holds_what_its_files_hold_alone(tmp_path, rng):
    paths = [simple(tmp_path / f"{i}.fcs", rng.normal(size=(5 + i, 3))) for i in range(3)]
    together = read_fcs(paths, sample_names=["x", "y", "z"])
    for name, path in zip("xyz", paths, strict=True):
        alone = read_fcs(path, sample_names=name)
        part = together[together.obs["sample"] == name]
        assert np.array_equal(part.X, alone.X)
        assert part.obs_names.equals(alone.obs_names)


def test_spillover_follows_the_channel_names_of_the_cohort(tmp_path):
    one = [{"N": "FL1-A", "S": "CD3"}, {"N": "FL2-A", "S": "CD19"}]
    swapped = [{"N": "FL2-A", "S": "CD3"}, {"N": "FL1-A", "S": "CD19"}]
    paths = [
        simple(tmp_path / "a.fcs", [[1, 2]], one, SPILL=SPILL),
        simple(tmp_path / "b.fcs", [[1, 2]], swapped, SPILL=SPILL),
    ]
    adata = read_fcs(paths)
    # In file b FL1-A, which spills 0.25 into FL2-A, is CD19: FL2-A for the cohort.
    assert get_spillover(adata, "b").loc["FL2-A", "FL1-A"] == 0.25
    assert get_spillover(adata, "a").loc["FL1-A", "FL2-A"] == 0.25


def test_differing_panels_are_an_error_that_says_how(tmp_path):
    paths = [
        simple(tmp_path / "a.fcs", [[1, 2]], [{"S": "CD3"}, {"S": "SY41"}]),
        simple(tmp_path / "b.fcs", [[3, 4]], [{"S": "Syto 41"}, {"S": "CD3"}]),
    ]
    with pytest.raises(PanelMismatchError, match="b lacks SY41 and has Syto 41 in addition"):
        read_fcs(paths)
    assert read_fcs(paths, join="inner").to_df().to_dict("list") == {"CD3": [1, 4]}
    outer = read_fcs(paths, join="outer")
    assert outer.var_names.tolist() == ["CD3", "SY41", "Syto 41"]
    np.testing.assert_array_equal(outer.X, [[1, 2, np.nan], [4, np.nan, 3]])
    renamed = read_fcs(paths, marker_aliases={"SY41": "Syto 41"})
    assert renamed.X.tolist() == [[1, 2], [4, 3]]
    with pytest.raises(InvalidInputError, match="marker_aliases give several markers of a"):
        read_fcs(paths, marker_aliases={"SY41": "CD3"})
    with pytest.raises(InvalidInputError, match="join must be"):
        read_fcs(paths, join="left")


def test_files_without_a_common_marker_do_not_join(tmp_path):
    paths = [simple(tmp_path / f"{n}.fcs", [[1]], [{"N": n}]) for n in ("FL1", "FL2")]
    with pytest.raises(PanelMismatchError, match="share no marker"):
        read_fcs(paths, join="inner")


def test_compensated_and_raw_files_do_not_mix(tmp_path):
    paths = [
        simple(tmp_path / f"{n}.fcs", [[1]], [{"N": n, "S": "CD3"}]) for n in ("FL1", "Comp-FL1")
    ]
    with pytest.raises(PanelMismatchError, match="CD3: compensated"):
        read_fcs(paths)


def test_the_range_of_a_cohort_is_the_largest(tmp_path):
    paths = [simple(tmp_path / f"{r}.fcs", [[1]], [{"R": r}]) for r in ("100", "300", "200")]
    assert read_fcs(paths).var["range"].tolist() == [300]


def test_sample_names_must_fit_and_be_unique(tmp_path):
    (tmp_path / "b").mkdir()
    paths = [simple(tmp_path / "a.fcs", [[1]]), simple(tmp_path / "b" / "a.fcs", [[1]])]
    with pytest.raises(InvalidInputError, match="Sample names repeat: a"):
        read_fcs(paths)
    assert read_fcs(paths, sample_names=["x", "y"]).obs_names.tolist() == ["x:0", "y:0"]
    with pytest.raises(InvalidInputError, match="1 sample_names for 2 files"):
        read_fcs(paths, sample_names=["x"])
    with pytest.raises(InvalidInputError, match="non-empty strings"):
        read_fcs(paths, sample_names=["x", ""])
    with pytest.raises(InvalidInputError, match="is empty"):
        read_fcs([])


# anndata announces new defaults of its zarr format in either version of it.
@pytest.mark.filterwarnings("ignore:Writing zarr v2 data will no longer:UserWarning")
@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_what_is_read_survives_being_saved(tmp_path, form):
    adata = read_fcs(cohort(tmp_path), scale_time=False)
    target = tmp_path / f"saved.{form}"
    getattr(adata, f"write_{form}")(target)
    back = getattr(ad, f"read_{form}")(target)
    assert np.array_equal(back.X, adata.X)
    assert back.obs_names.equals(adata.obs_names)
    pd.testing.assert_frame_equal(
        back.var.astype({"kind": object, "transform": object, "marker": object, "channel": object}),
        adata.var.astype(
            {"kind": object, "transform": object, "marker": object, "channel": object}
        ),
    )
    pd.testing.assert_frame_equal(get_spillover(back, "z"), get_spillover(adata, "z"))
    assert get_spillover(back, "a") is None
    assert back.uns["fcs"]["keywords"]["CYT"].tolist() == ["", "X"]


# Damaged files


TWO = [{}, {}]
GOOD = float_bytes([[1, 2], [3, 4]])
DAMAGED = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "text": (b"event,CD3\n" * 99, "not an FCS file"),
    "header only": (b"FCS3.1    ", "no valid TEXT offsets"),
    "no numbers in header": (b"FCS3.1".ljust(99, b"x"), "no valid TEXT offsets"),
    "version": (fcs_bytes(GOOD, TWO, 2, version="1.0"), "version '1.0'"),
    "truncated data": (fcs_bytes(GOOD, TWO, 2)[:-3], "truncated"),
    "truncated text": (fcs_bytes(GOOD, TWO, 2)[:90], "truncated"),
    "data beyond the end": (fcs_bytes(GOOD, TWO, 2, start=9999), "truncated"),
    "header against text": (
        fcs_bytes(GOOD, TWO, 2, header_data=(2052, 2067)) + bytes(8),
        "HEADER puts DATA at bytes 2052 to 2067, TEXT at 2048",
    ),
    "data before text": (fcs_bytes(GOOD, TWO, 2, start=3), "impossible"),
    "tot too large": (fcs_bytes(GOOD, TWO, 3), r"\$TOT = 3 events need 24 bytes"),
    "tot too small": (fcs_bytes(GOOD, TWO, 1), r"\$TOT = 1 events need 8 bytes"),
    "tot absurd": (fcs_bytes(GOOD, TWO, 10**15), r"\$TOT = 1000000000000000 events"),
    "tot negative": (fcs_bytes(GOOD, TWO, -2), r"\$TOT is -2"),
    "no events": (fcs_bytes(b"", TWO, 0), "no events"),
    "par absurd": (fcs_bytes(GOOD, TWO, 2, **{"$PAR": "99999999999"}), "promises 99999999999"),
    "par zero": (fcs_bytes(GOOD, TWO, 2, **{"$PAR": "0"}), r"\$PAR is 0"),
    "par too large": (fcs_bytes(GOOD, TWO, 2, **{"$PAR": "3"}), "2 events need 24 bytes"),
    "par no number": (fcs_bytes(GOOD, TWO, 2, **{"$PAR": "two"}), r"\$PAR is 'two'"),
    "no par": (fcs_bytes(GOOD, TWO, 2, **{"$PAR": None}), r"lacks the required keyword \$PAR"),
    "no tot": (fcs_bytes(GOOD, TWO, 2, **{"$TOT": None}), r"required keyword \$TOT"),
    "no range": (fcs_bytes(GOOD, [{}, {"R": None}], 2), r"required keyword \$P2R"),
    "ascii": (fcs_bytes(GOOD, TWO, 2, **{"$DATATYPE": "A"}), r"\$DATATYPE is A"),
    "mixed types": (fcs_bytes(GOOD, TWO, 2, **{"$P2DATATYPE": "D"}), "2 events need 24 bytes"),
    "unknown type": (fcs_bytes(GOOD, TWO, 2, **{"$P2DATATYPE": "X"}), r"\$DATATYPE is X"),
    "histogram": (fcs_bytes(GOOD, TWO, 2, **{"$MODE": "C"}), "only list mode"),
    "byte order": (fcs_bytes(GOOD, TWO, 2, **{"$BYTEORD": "3,4,1,2"}), r"\$BYTEORD is '3,4,1,2'"),
    "width": (
        fcs_bytes(GOOD, [{"B": "72"}, {}], 2, **{"$DATATYPE": "I"}),
        r"\$P1B is 72 bits; expected 1 to 64",
    ),
    "integer range": (
        fcs_bytes(GOOD, [{"R": "0"}, {}], 2, **{"$DATATYPE": "I"}),
        "this range at least 1",
    ),
    "gain": (fcs_bytes(GOOD, [{"G": "-1"}, {}], 2), "gain not negative"),
    "decades": (
        fcs_bytes(GOOD, [{"E": "400,1"}, {}], 2, **{"$DATATYPE": "I"}),
        "0 to 38 decades",
    ),
    "decades no number": (
        fcs_bytes(GOOD, [{"E": "LOG"}, {}], 2, **{"$DATATYPE": "I"}),
        r"\$P1E is 'LOG'",
    ),
    "gain too small": (fcs_bytes(GOOD, [{"G": "1e-300"}, {}], 2), "beyond the range of float32"),
    "gain no number": (fcs_bytes(GOOD, [{"G": "high"}, {}], 2), r"\$P1G is 'high'"),
    "supplement": (
        fcs_bytes(GOOD, TWO, 2, **{"$BEGINSTEXT": "9000", "$ENDSTEXT": "9100"}),
        r"\$ENDSTEXT is 9100",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_named_and_its_damage_explained(tmp_path, case):
    content, message = DAMAGED[case]
    path = write(tmp_path / "bad.fcs", content)
    with pytest.raises(FcsError, match=message) as caught:
        read_fcs(path)
    assert "bad.fcs" in str(caught.value)


def test_a_path_without_file_is_an_fcs_error(tmp_path):
    with pytest.raises(FcsError, match="No such file"):
        read_fcs(tmp_path / "none.fcs")
    with pytest.raises(FcsError, match="is a folder"):
        read_fcs(tmp_path)


@settings(max_examples=60)
@given(length=st.integers(0, 2048 + 15))
def test_a_file_cut_anywhere_is_an_fcs_error(tmp_path_factory, length):
    path = write(tmp_path_factory.mktemp("f") / "a.fcs", fcs_bytes(GOOD, TWO, 2)[:length])
    with pytest.raises(FcsError, match=r"a\.fcs"):
        read_fcs(path)


# What is guessed in a damaged file is told; here it does not matter.
@pytest.mark.filterwarnings("ignore:a.fcs:UserWarning")
@settings(max_examples=300)
@given(changes=st.lists(st.tuples(st.integers(0, 420), st.integers(0, 255)), max_size=4))
@example(changes=[(58, ord("("))])
@example(changes=[(58, ord("$"))])
def test_damage_in_header_or_text_never_ends_in_a_foreign_exception(tmp_path_factory, changes):
    content = bytearray(fcs_bytes(GOOD, TWO, 2, SPILL=SPILL))
    for place, value in changes:
        content[place] = value
    path = write(tmp_path_factory.mktemp("f") / "a.fcs", bytes(content))
    with suppress(FcmError):
        assert read_fcs(path).n_obs > 0


def test_an_end_offset_that_counts_one_byte_too_far_is_accepted(tmp_path):
    path = write(tmp_path / "a.fcs", fcs_bytes(GOOD, TWO, 2, size=len(GOOD) + 1) + b" ")
    assert read_fcs(path).X.tolist() == [[1, 2], [3, 4]]


def test_offsets_beyond_eight_digits_are_taken_from_text(tmp_path):
    path = write(tmp_path / "a.fcs", fcs_bytes(GOOD, TWO, 2, header_data=(0, 0)))
    assert read_fcs(path).X.tolist() == [[1, 2], [3, 4]]


# Writing


def annotated(adata: ad.AnnData) -> ad.AnnData:
    labels = np.array(["other", "blast", None], dtype=object)[np.arange(adata.n_obs) % 3]
    adata.obs["reluformer"] = pd.Categorical(labels, categories=["other", "blast"])
    proba = np.linspace(0, 1, adata.n_obs, dtype="f4")
    adata.obsm["reluformer_proba"] = pd.DataFrame(
        {"blast": proba, "other": 1 - proba}, index=adata.obs_names
    )
    return adata


def same_values(a: ad.AnnData, b: ad.AnnData) -> bool:
    return np.array_equal(a.X, b.X) and a.var.equals(b.var)


@pytest.mark.filterwarnings("ignore:.*far beyond .PnR:UserWarning")
@given(
    rows=st.lists(st.tuples(floats, floats), min_size=1, max_size=20),
    cyt=st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=300),
)
def test_writing_and_reading_again_changes_nothing(tmp_path_factory, rows, cyt):
    folder = tmp_path_factory.mktemp("f")
    parameters = [{"N": "Time", "G": "0.01"}, {"S": "CD3", "G": "4", "R": "262144"}]
    adata = read_fcs(simple(folder / "a.fcs", rows, parameters, SPILL="1,FL2-A,1"))
    adata.uns["fcs"]["keywords"]["CYT"] = np.array([cyt], dtype=object)
    write_fcs(adata, folder / "b.fcs")
    back = read_fcs(folder / "b.fcs", keep_keywords=["CYT"] if cyt.strip() else [])
    assert same_values(adata, back)
    assert back.uns["fcs"]["keywords"].get("CYT", [""])[0].strip() == cyt.strip()
    # flowio checks that HEADER and TEXT agree on the offsets, for every length of TEXT.
    assert flowio.FlowData(folder / "b.fcs").event_count == len(rows)


def test_log_data_are_written_linear(tmp_path):
    stored = np.array([[0], [512], [1023]], dtype="<u2")
    content = fcs_bytes(stored.tobytes(), [{"B": "16", "E": "4,1"}], 3, **{"$DATATYPE": "I"})
    source = write(tmp_path / "a.fcs", content)
    adata = read_fcs(source)
    write_fcs(adata, tmp_path / "b.fcs")
    write_fcs(adata, tmp_path / "c.fcs", source=source)
    for name in ("b", "c"):
        assert same_values(adata, read_fcs(tmp_path / f"{name}.fcs"))
        assert flowio.FlowData(tmp_path / f"{name}.fcs").text["p1e"] == "0,0"


def test_events_go_back_to_their_original_order(tmp_path, rng):
    adata = read_fcs([simple(tmp_path / f"{n}.fcs", rng.normal(size=(20, 2))) for n in "ab"])
    shuffled = adata[rng.permutation(adata.n_obs)]
    write_fcs(shuffled, tmp_path / "out.fcs", sample="b")
    assert np.array_equal(read_fcs(tmp_path / "out.fcs").X, adata[adata.obs["sample"] == "b"].X)
    with pytest.raises(InvalidInputError, match="choose one with sample="):
        write_fcs(adata, tmp_path / "none.fcs")
    with pytest.raises(MissingKeyError, match="'c' is not among a, b"):
        write_fcs(adata, tmp_path / "none.fcs", sample="c")
    assert not (tmp_path / "none.fcs").exists()


def test_spillover_and_keywords_of_the_sample_are_written(tmp_path):
    adata = read_fcs(cohort(tmp_path))
    for sample in ("z", "a"):
        write_fcs(adata, tmp_path / "out.fcs", sample=sample)
        back = read_fcs(tmp_path / "out.fcs", sample_names=sample)
        ours, theirs = get_spillover(adata, sample), get_spillover(back, sample)
        assert theirs is None if ours is None else ours.equals(theirs)
    assert back.uns["fcs"]["keywords"]["CYT"].tolist() == ["X"]


def test_classes_and_probabilities_become_parameters_and_never_markers(tmp_path, rng):
    adata = annotated(read_fcs(simple(tmp_path / "a.fcs", rng.normal(size=(6, 2)))))
    write_fcs(adata, tmp_path / "b.fcs")
    back = read_fcs(tmp_path / "b.fcs")
    assert back.var_names.tolist()[2:] == ["reluformer", "reluformer_other", "reluformer_blast"]
    assert back.var["kind"].tolist()[2:] == ["other"] * 3
    assert back[:, "reluformer"].X.ravel().tolist() == [1, 2, 0, 1, 2, 0]
    expected = adata.obsm["reluformer_proba"]["blast"].to_numpy() * [1, 1, 0, 1, 1, 0]
    np.testing.assert_array_equal(back[:, "reluformer_blast"].X.ravel(), expected.astype("f4"))
    text = flowio.FlowData(tmp_path / "b.fcs").text
    assert text["reluformer_classes"] == "0=not analysed, 1=other, 2=blast"
    assert text["p3r"] == "3"


def test_a_category_for_cells_not_analysed_gets_code_0(tmp_path):
    adata = read_fcs(simple(tmp_path / "a.fcs", [[1.0], [2.0], [3.0]]))
    adata.obs["cell,type"] = pd.Categorical(
        ["b", "not analysed", "a"], categories=["not analysed", "a", "b"]
    )
    write_fcs(adata, tmp_path / "b.fcs", key="cell,type")
    back = read_fcs(tmp_path / "b.fcs")
    assert back[:, "cell_type"].X.ravel().tolist() == [2, 0, 1]


def test_with_its_source_nothing_of_the_original_is_lost(tmp_path, rng):
    keywords = {
        "$SRC": "xyz",
        "P1DISPLAY": "LOG",
        "$P1V": "500",
        "ODD|KEY": "a|b~c",
        "SPILL": SPILL,
    }
    keywords |= {"$TIMESTEP": "0.01", "EMPTY": " "}
    parameters = [{"S": "CD3", "G": "1.0"}, {}, {"N": "Time", "G": "0.01"}]
    source = simple(tmp_path / "a.fcs", rng.normal(size=(9, 3)), parameters, **keywords)
    adata = read_fcs(source, scale_time=True)
    part = annotated(adata[[7, 2, 5], ["CD3"]].copy())
    write_fcs(part, tmp_path / "b.fcs", source=source)
    before, after = flowio.FlowData(source), flowio.FlowData(tmp_path / "b.fcs")
    renewed = {"begindata", "enddata", "par"}
    assert {k: after.text.get(k) for k in before.text if k not in renewed} == {
        k: v for k, v in before.text.items() if k not in renewed
    }
    events = np.reshape(after.events, (9, -1))
    assert np.array_equal(events[:, :3], np.reshape(before.events, (9, 3)))
    # Rows 7, 2, 5 carry "other", "blast", none; the other events were never in the data.
    assert events[:, 3].tolist() == [0, 0, 2, 0, 0, 0, 0, 1, 0]


def test_a_source_the_events_do_not_come_from_is_refused(tmp_path):
    source = simple(tmp_path / "a.fcs", [[1, 2], [3, 4]])
    adata = read_fcs(source)
    other = simple(tmp_path / "b.fcs", [[1, 2], [3, 5]])
    with pytest.raises(InvalidInputError, match=r"b\.fcs is not the file.*differ in FL2-A"):
        write_fcs(adata, tmp_path / "out.fcs", source=other)
    short = simple(tmp_path / "c.fcs", [[1, 2]])
    with pytest.raises(InvalidInputError, match=r"c\.fcs has 1 events"):
        write_fcs(adata, tmp_path / "out.fcs", source=short)
    strange = simple(tmp_path / "d.fcs", [[1], [3]], [{"N": "X"}])
    with pytest.raises(InvalidInputError, match="no channel is shared"):
        write_fcs(adata, tmp_path / "out.fcs", source=strange)
    with pytest.raises(InvalidInputError, match="is the source itself"):
        write_fcs(adata, source, source=source)
    assert read_fcs(source).X.tolist() == [[1, 2], [3, 4]]


def test_writing_twice_under_one_key_is_refused_and_under_two_keys_adds_up(tmp_path):
    adata = annotated(read_fcs(simple(tmp_path / "a.fcs", [[1.0], [2.0]])))
    write_fcs(adata, tmp_path / "b.fcs")
    with pytest.raises(InvalidInputError, match="already has parameters named reluformer"):
        write_fcs(adata, tmp_path / "c.fcs", source=tmp_path / "b.fcs")
    adata.obs["second"] = pd.Categorical(["x", "y"])
    write_fcs(adata, tmp_path / "c.fcs", source=tmp_path / "b.fcs", key="second")
    kinds = read_fcs(tmp_path / "c.fcs").var["kind"]
    assert kinds.tolist() == ["fluorescence"] + ["other"] * 4


def test_processed_values_are_never_written_as_raw(tmp_path):
    adata = read_fcs(simple(tmp_path / "a.fcs", [[1.0], [2.0]]))
    raw = adata.X.copy()
    adata.X = np.arcsinh(adata.X)
    adata.var["transform"] = "arcsinh(cofactor=1)"
    with pytest.raises(ProcessingStateError, match=r"FL1-A.*layers\[\"raw\"\]"):
        write_fcs(adata, tmp_path / "b.fcs")
    adata.layers["raw"] = raw
    write_fcs(adata, tmp_path / "b.fcs")
    assert np.array_equal(read_fcs(tmp_path / "b.fcs").X, raw)


def test_a_file_exported_compensated_is_its_own_raw_data(tmp_path):
    adata = read_fcs(simple(tmp_path / "a.fcs", [[1.0]], [{"N": "Comp-FL1-A"}]))
    write_fcs(adata, tmp_path / "b.fcs")
    assert same_values(adata, read_fcs(tmp_path / "b.fcs"))


def test_time_in_seconds_is_not_scaled_again(tmp_path):
    path = simple(tmp_path / "a.fcs", [[50.0]], [{"N": "Time"}], **{"$TIMESTEP": "0.01"})
    adata = read_fcs(path, scale_time=True)
    assert adata.X.tolist() == [[0.5]]
    write_fcs(adata, tmp_path / "b.fcs")
    assert read_fcs(tmp_path / "b.fcs", scale_time=True).X.tolist() == [[0.5]]


def test_markers_that_a_sample_lacks_are_not_written(tmp_path):
    paths = [simple(tmp_path / f"{n}.fcs", [[1, 2]], [{"N": "X"}, {"N": n}]) for n in "AB"]
    adata = read_fcs(paths, join="outer")
    write_fcs(adata, tmp_path / "out.fcs", sample="B")
    assert read_fcs(tmp_path / "out.fcs").var_names.tolist() == ["X", "B"]


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path, monkeypatch):
    adata = read_fcs(simple(tmp_path / "a.fcs", [[1.0]]))
    target = write(tmp_path / "b.fcs", b"old")

    def refuse(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(InvalidInputError, match="No space left"):
        write_fcs(adata, target)
    assert target.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.fcs", "b.fcs"]
    with pytest.raises(InvalidInputError, match="Cannot write"):
        write_fcs(adata, tmp_path / "nowhere" / "b.fcs")


def test_predicted_gates_become_parameters_beside_the_classes(tmp_path):
    source = simple(tmp_path / "a.fcs", [[1.0], [2.0], [3.0]])
    adata = read_fcs(source)
    adata.obsm["predicted_gates_membership"] = pd.DataFrame(
        {"CD19": pd.array([True, None, False], dtype="boolean"), "a,b": [False, True, True]},
        index=adata.obs_names,
    )
    write_fcs(adata[[2, 0, 1]], tmp_path / "gates.fcs")
    again = read_fcs(tmp_path / "gates.fcs")
    columns = ["predicted_gates_CD19", "predicted_gates_a_b"]
    assert again[:, columns].X.tolist() == [[1, 0], [0, 1], [0, 1]]
    assert (again.var.loc[columns, "kind"] == "other").all()
    both = annotated(adata.copy())
    write_fcs(both, tmp_path / "both.fcs", source=source)
    found = read_fcs(tmp_path / "both.fcs").var_names
    assert {"reluformer", *columns} <= set(found)


def test_what_cannot_be_written_is_refused_with_its_reason(tmp_path):
    adata = annotated(read_fcs(simple(tmp_path / "a.fcs", [[1.0], [2.0]])))
    target = tmp_path / "b.fcs"
    with pytest.raises(MissingKeyError, match=r"neither obs\['cell_type'\] nor"):
        write_fcs(adata, target, key="cell_type")
    repeated = adata.copy()
    repeated.obs["event"] = 0
    with pytest.raises(InvalidInputError, match="1 repeated"):
        write_fcs(repeated, target)
    wrong = adata.copy()
    wrong.obsm["reluformer_proba"] = np.zeros((2, 2))
    with pytest.raises(InvalidInputError, match="a DataFrame with one column for each of"):
        write_fcs(wrong, target)
    wrong = adata.copy()
    wrong.obsm["predicted_gates_membership"] = np.zeros((2, 2))
    with pytest.raises(InvalidInputError, match="True/False column per gate"):
        write_fcs(wrong, target)
    bare = ad.AnnData(np.zeros((1, 1), dtype="f4"))
    with pytest.raises(MissingKeyError, match=r"adata\.obs lacks sample, event"):
        write_fcs(bare, target)
    assert not target.exists()


def test_writing_leaves_the_data_as_they_were(tmp_path):
    source = simple(tmp_path / "a.fcs", [[1.0, 2.0], [2.0, 3.0]], SPILL=SPILL)
    adata = annotated(read_fcs(source))
    before = adata.copy()
    write_fcs(adata, tmp_path / "b.fcs", source=source)
    assert same_values(adata, before)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.obsm["reluformer_proba"], before.obsm["reluformer_proba"])
    assert list(adata.uns["fcs"]) == list(before.uns["fcs"])


def test_the_written_header_follows_the_standard(tmp_path):
    write_fcs(read_fcs(simple(tmp_path / "a.fcs", [[1.5, 2.0]])), tmp_path / "b.fcs")
    content = (tmp_path / "b.fcs").read_bytes()
    assert content[:10] == b"FCS3.1    "
    start, stop = int(content[26:34]), int(content[34:42])
    assert stop + 1 == len(content)
    assert struct.unpack("<2f", content[start : stop + 1]) == (1.5, 2.0)


# Public data


@pytest.mark.real_data
def test_the_leukaemia_sample_is_read_raw():
    path = data_home("all494") / "494.fcs"
    adata = read_fcs(path)
    stored = np.reshape(flowio.FlowData(path).events, (-1, 12)).astype("f4")
    assert adata.shape == (83_411, 12)
    assert np.array_equal(adata.X, stored)
    assert adata.var_names.tolist() == [
        "Time", "FSC-A", "FSC-W", "SSC-A", "CD20", "CD10", "CD45", "CD34", "Syto 41", "CD19",
        "CD38", "APC-Cy7-A",
    ]  # fmt: skip
    assert adata.var["kind"].tolist() == ["time"] + ["scatter"] * 3 + ["fluorescence"] * 8
    assert set(adata.var["range"]) == {262_144.0}
    spill = get_spillover(adata, "494")
    assert spill.shape == (8, 8)
    assert (np.diag(spill) == 1).all()
    assert "Administrator" not in str(adata.uns)
    seconds = read_fcs(path, scale_time=True)
    np.testing.assert_allclose(seconds.X[:, 0], stored[:, 0] * 0.01, rtol=1e-6)
    assert np.array_equal(seconds.X[:, 1:], stored[:, 1:])


@pytest.mark.real_data
def test_the_leukaemia_sample_survives_being_written(tmp_path, rng):
    path = data_home("all494") / "494.fcs"
    adata = annotated(read_fcs(path))
    write_fcs(adata[rng.permutation(adata.n_obs)], tmp_path / "b.fcs", source=path)
    back = read_fcs(tmp_path / "b.fcs", sample_names="494")
    assert np.array_equal(back.X[:, :12], adata.X)
    assert get_spillover(back, "494").equals(get_spillover(adata, "494"))
    assert np.array_equal(back[:, "reluformer"].X.ravel(), adata.obs["reluformer"].cat.codes + 1)


@pytest.mark.real_data
def test_integer_log_data_of_the_compliance_set_are_decoded_as_flowio_decodes_them():
    path = data_home("gatingml_reference") / "data1.fcs"
    assert np.array_equal(read_fcs(path).X, flowio.FlowData(path).as_array().astype("f4"))
