"""Kinds of channels by vendor: what is a stain, and what is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcm_estimators.io.channels import channel_kinds
from fcm_estimators.io.kinds import is_compensated, plain_channel, stem_and_pulse

# kind -> names of $PnN, by vendor or program.
KINDS = {
    "time": {
        "BD": "Time", "Beckman": "TIME", "Summit": "TIME2", "Influx": "Time 1|Time 2|Time 3",
        "Bio-Rad S3e": "TIME_LSW|TIME_MSW", "MACSQuant": "HDR-T|HDR-TM",
        "others": "Timestamp|Clock",
    },
    "scatter": {
        "BD": "FSC-A|SSC-W|SSC-B-H|FSC-PMT-A|SSC (Imaging)-A|LightLoss (Violet)-A",
        "Beckman": "FS INT LIN|SS PEAK|FS TOF|Violet SSC-A|VSSC-A|FS-Lin|SS|FSC-Width",
        "Sony": "BSC-A|BSC-W|FSC_A", "Apogee": "SALS-P|MALS-A|LALS-A", "Guava": "SSC-HLog|FSC-HLin",
        "Influx": "[488] FSC Par|[488] FSC Perp|*[488] SSC|[405] SSC", "Propel": "FS00-A|SS02-A",
        "ZE5": "FSC 488/10-A|SSC 405/10-H|488 SSC-A", "Summit": "FSC-Height|SSC1-Area",
        "in words": "Forward Scatter|Side Scatter-A|Light Scatter|Axial Light Loss-A",
    },
    "other": {
        "counters": "Event|Event #|Event_length|EventNumberDP|Event Count|event_number|Cell_length",
        "MACSQuant": "HDR-CE|HDR-SE|HDR-V", "iCyt": "EV", "CUBE": "DOUBLET", "S3e": "SORT",
        "Influx": "Trigger Pulse Width|Drop Phase|ROI Bits 1-16|Classifier Bits|Sort Result Bits",
        "Accuri": "Width", "index sort": "Tray X|Tray Y|IdxCol|IdxRow|Plate X|Well Y",
        "CyTOF": "Center|Offset|Residual|bead_dist|beadDist|Beads",
        "concatenated": "file_number|label",
        "FlowJo": "SampleID|Sample ID|CellId|individual", "images": "X|Y|X Position|Object Number",
        "S8": "Eccentricity (FSC)|Center of Mass (SSC)|Delta Center of Mass X|Size (FSC)"
        "|Radial Moment (FSC)|Long Axis Moment (SSC)|Max Intensity (FSC)|Diffusivity (SSC)"
        "|Correlation (FSC/SSC)|Total Intensity (FSC)",
        "ImageStream": "Area_M01|Aspect Ratio_M01|Gradient RMS_M01_Ch01|Circularity_Object",
        "CytPix": "Img. Area-Square|Img. Circularity",
        "embeddings": "UMAP_1|UMAP1|tSNE1|t-SNE 2|opt-SNE-1|viSNE2|bh-SNE_1|PHATE_2|PC_1|PCA_2",
        "clusters": "FlowSOM|FlowSOM.metacluster|PhenoGraph_k30|cluster|metaclusters|X-shift",
        "cleaning": "GoodVsBad|Original_ID|FlowAI|QC",
    },
    "fluorescence": {
        "BD": "FITC-A|PE-Cy7-H|<PE-A>|BUV395-A|V450/50-A",
        "Beckman": "FL1 INT LOG|FL10|ECD-A|PC7-A",
        "PC dyes are no components": "PC5|PC5.5-A|PC7", "Attune": "BL1-A|YL4-W|VL1-H",
        "MACSQuant": "V1-A|B3-H|R2-W", "Aurora": "UV1-A|YG10-A|AF-A", "Sony": "405CH1-A|CH7-A",
        "Influx": "*[561] 585/29|[405] 460/50", "Guava": "GRN-HLog|RED-B-HLin",
        "Apogee": "L405-Grn",
        "ImageStream": "Intensity_MC_Ch02", "words inside": "Timeless|CD-W|Widthin|Labelled-A",
    },
}  # fmt: skip
TABLE = [
    (name, kind)
    for kind, vendors in KINDS.items()
    for names in vendors.values()
    for name in names.split("|")
]
ANTIGENS = [
    "CD3", "CD66", "CD62L", "CD112", "CD-W", "CDw150", "Ki-67", "HLA-DR", "TIM-3", "SSEA-4", "FSP1",
    "PD-1", "TCRgd", "IgM", "EVA1", "Lambda", "MPO", "TdT", "cyCD79a", "Width1x", "SSTR2", "SOX2",
    "CLEC9A", "Index1-like", "BSG", "Xist", "Y chromosome", "Clec12a", "SIGLEC", "PCNA", "HDR",
    "IL-2", "Viability", "Live/Dead", "DAPI", "GFP", "SORT1", "CENTER-1", "EVI1", "Labelin", "FLT3",
    "XCR1", "T-bet", "Time", "Sortilin", "QC1",
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), TABLE)
def test_the_name_of_a_channel_tells_its_kind_for_every_vendor(name, kind):
    assert channel_kinds([name]) == [kind]


@pytest.mark.parametrize("name", [a for a in ANTIGENS if a != "Time"])
def test_antigens_stay_markers_as_channel_and_as_stain(name):
    assert channel_kinds([name]) == ["fluorescence"]
    assert channel_kinds(["FL1-A"], keywords={"P1S": name}) == ["fluorescence"]


@pytest.mark.parametrize("name", ["Sort", "X", "Label", "ID", "EV", "Width", "Size"])
def test_short_words_tell_nothing_as_the_name_of_a_stain(name):
    assert channel_kinds([name]) == ["other"]
    assert channel_kinds(["FL1-A"], keywords={"P1S": name}) == ["fluorescence"]


@pytest.mark.parametrize(
    "name",
    [
        "Er168Di", "(Nd142)Dd", "CD45RA(La139)Di", "CD3(Er170Di)", "170Er_CD3", "191Ir_DNA1",
        "Viability(Pt195)Di", "CD45_89Y", "CD3 (Er170)", "BCKG190Di",
        "Cd112Di", "112Cd_CD19", "Ce140Di",
    ],
)  # fmt: skip
def test_isotopes_are_mass_and_the_rest_of_their_file_is_no_marker(name):
    assert channel_kinds(["Time", name, "Event_length", "Something"]) == [
        "time",
        "mass",
        "other",
        "other",
    ]


def test_a_symbol_that_could_be_an_antigen_is_mass_only_among_isotopes():
    assert channel_kinds(["Cd112", "FITC-A"]) == ["fluorescence"] * 2
    assert channel_kinds(["Cd112", "Er170Di"]) == ["mass"] * 2
    assert channel_kinds(["CD112", "CD106", "Y585-A", "B515-A"]) == ["fluorescence"] * 4
    # No isotope of erbium has this mass.
    assert channel_kinds(["Er300", "250Er"]) == ["fluorescence"] * 2


@pytest.mark.parametrize(
    ("marker", "kind"),
    [("FSC-A", "scatter"), ("Side Scatter", "scatter"), ("Time (204.80 sec.)", "time"),
     ("170Er_CD3", "mass"), ("UMAP_1", "other"), ("FlowSOM", "other"), ("Event_length", "other"),
     ("CD3", "fluorescence")],
)  # fmt: skip
def test_the_name_of_a_stain_counts_where_that_of_the_channel_says_nothing(marker, kind):
    assert channel_kinds(["P1"], keywords={"P1S": marker}) == [kind]
    assert channel_kinds(["FSC-A"], keywords={"P1S": marker}) == ["scatter"]


@pytest.mark.parametrize(
    ("type_name", "kind"),
    [("Forward_Scatter", "scatter"), ("Side Scatter", "scatter"), ("MASS", "mass"),
     ("Raw_Fluorescence", "fluorescence"), ("Unmixed_Fluorescence", "fluorescence"),
     ("Time", "time"), ("Index", "other"),
     ("Classification", "other"), ("Electronic_Volume", "other")],
)  # fmt: skip
def test_the_type_of_fcs_3_2_decides(type_name, kind):
    assert channel_kinds(["P1"], keywords={"P1TYPE": type_name}) == [kind]
    assert channel_kinds(["UMAP_1"], keywords={"P1TYPE": type_name}) == [kind]


def test_an_unknown_type_leaves_the_name_to_decide():
    assert channel_kinds(["FSC-A"], keywords={"P1TYPE": "Novel"}) == ["scatter"]
    assert channel_kinds(["Time"], keywords={"P1TYPE": "Raw_Fluorescence"}) == ["time"]


@given(st.sampled_from(TABLE), st.sampled_from(["Comp-{}", "FJComp-{}", "<{}>"]))
def test_the_mark_of_compensated_values_leaves_the_kind(pair, mark):
    name, kind = pair
    marked = mark.format(plain_channel(name))
    assert channel_kinds([marked]) == [kind]
    assert is_compensated(marked)
    assert plain_channel(marked) == plain_channel(name)


@given(st.sampled_from(TABLE), st.booleans(), st.sampled_from(["", " "]))
def test_case_and_blanks_around_a_name_leave_the_kind(pair, upper, blank):
    name, kind = pair
    assert channel_kinds([blank + (name.upper() if upper else name) + blank]) == [kind]


@given(st.sampled_from(["FITC", "PE-Cy7", "FL1", "BV421", "AF488", "Pacific Blue"]))
def test_measures_of_one_pulse_share_their_stem(dye):
    for endings in (("-A", "-H", "-W"), ("-Area", "-Height", "-Width"), (" INT", " PEAK", " TOF")):
        assert [stem_and_pulse(dye + e) for e in endings] == [(dye.lower(), p) for p in "AHW"]
    assert stem_and_pulse(dye) == (dye.lower(), "")


@pytest.mark.parametrize("name", ["FITC-A", "Compound-A", "Comp", "PE<3", "<>", "Complement"])
def test_other_names_are_not_compensated(name):
    assert not is_compensated(name)
