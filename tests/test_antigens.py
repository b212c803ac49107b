"""Suggestions for a missing marker: other spellings of the same antigen, never another protein."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcm_estimators._checks import marker_positions, same_antigen
from fcm_estimators.exceptions import MarkerMismatchError

ANTIGENS = [
    "CD3", "CD3e", "CD4", "CD8", "CD8a", "CD10", "CD11b", "CD11c", "CD16", "CD19", "CD20", "CD34",
    "CD38", "CD45", "CD45RA", "CD45RO", "CD62L", "CD62P", "CD66", "CD66b", "CD66ace", "CD79a",
    "CD79b", "cyCD79a", "cyCD3", "CD117", "CD123", "CD127", "CD135", "CD200", "CD235a", "HLA-DR",
    "HLA-DQ", "HLA-A", "HLA-B", "HLA-C", "HLA", "Ki-67", "TdT", "MPO", "IgM", "IgD", "IgG", "Kappa",
    "Lambda", "TCRab", "TCRgd", "TCR Vd1", "TCR Vd2", "PD-1", "PD-L1", "TIM-3", "CCR7", "CCR4",
    "CXCR3", "CXCR5", "IL-2", "IL-4", "IL-17A", "IL-1A", "IL-1", "Granzyme A", "Granzyme B", "TNF",
    "IFNg", "Syto 41", "Syto 13", "DNA1", "DNA2", "FMC7", "CRLF2", "7-AAD", "NG2", "CD16/56",
    "CD3/CD4", "CD15", "CD15s",
]  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cd-10", "CD10"), ("CD 45", "CD45"), ("CD45 FITC", "CD45"), ("CD45-PE-Cy7-A", "CD45"),
        ("CD45 HI30", "CD45"), ("CD45 (2D1) BV421", "CD45"), ("CD3 (FITC-A)", "CD3"),
        ("HLADR", "HLA-DR"), ("HLA-DR V450-A", "HLA-DR"), ("ki67 AF647", "Ki-67"),
        ("HCD10", "CD10"),
        ("Syto41-A", "Syto 41"), ("170Er_CD3", "CD3"), ("CD3(Er170)Di", "CD3"),
        ("anti-CD19", "CD19"),
        ("Comp-CD19 PE-A", "CD19"), ("CD45 PerCP-Cy5.5", "CD45"), ("CD20 Alexa Fluor 488", "cd20"),
        ("CD38 APC-H7", "CD38"), ("CD10 APC-R700-A", "CD10"), ("CD34 PC7", "CD34"),
        ("CD45 KrO", "CD45"),
        ("CD4 Pacific Blue-A", "CD4"), ("CD19_PE", "CD19"), ("CD58 BB515", "CD58 FITC"),
    ],
)  # fmt: skip
def test_spellings_of_one_antigen_are_recognised(one, other):
    assert same_antigen(one, other)
    assert same_antigen(other, one)


@pytest.mark.parametrize("one", ANTIGENS)
def test_no_antigen_is_taken_for_another(one):
    assert [other for other in ANTIGENS if same_antigen(one, other)] == [one]


@given(
    st.sampled_from(ANTIGENS),
    st.sampled_from(ANTIGENS),
    st.sampled_from(["{} FITC", "{}-PE-Cy7-A", "{} (APC-A)", "{}_BV421", "170Er_{}", "Comp-{}"]),
    st.booleans(),
)
def test_fluorochrome_isotope_and_case_change_no_antigen(one, other, form, lower):
    written = form.format(one.lower() if lower else one)
    assert same_antigen(written, other) == (one == other)


@pytest.mark.parametrize("name", ["FITC-A", "PE-A", "BV421-A", "170Er", "-", ""])
def test_a_name_without_antigen_is_only_itself(name):
    assert not same_antigen(name, "APC-A")
    assert not same_antigen(name, "CD3")
    assert not same_antigen(name, "")


@pytest.mark.parametrize(
    ("wanted", "present"),
    [("CD66", ["CD62L", "CD3"]), ("CD34", ["CD45", "CD3"]), ("CD45", ["CD45RA", "CD45RO"])],
)
def test_another_protein_is_never_suggested_but_what_there_is_is_listed(wanted, present):
    with pytest.raises(MarkerMismatchError) as error:
        marker_positions([wanted], present)
    assert "marker_aliases" not in str(error.value)
    assert all(repr(name) in str(error.value) for name in present)


def test_aliases_are_suggested_in_one_mapping_and_only_where_one_channel_fits():
    present = ["cd45 BV421", "CD 10", "CD3 (FITC-A)", "CD3 (PE-A)", "CD19"]
    with pytest.raises(MarkerMismatchError) as error:
        marker_positions(["CD45", "CD10", "CD3", "CD19", "CD66"], present)
    mapping = re.search(r"marker_aliases=(\{.*?\})", str(error.value))[1]
    assert mapping == "{'cd45 BV421': 'CD45', 'CD 10': 'CD10'}"
