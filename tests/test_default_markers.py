"""What a fit reads where nobody names markers: scatter and one channel per stain."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcm_estimators import ReluFormerClassifier
from fcm_estimators._cells.defaults import default_channels
from fcm_estimators._cells.samples import Source, read_samples
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.io.channels import channel_kinds, marker_names
from fcm_estimators.io.kinds import is_compensated


def sample(*pairs, n=40, **columns):
    """Events of channels "channel" or "channel=marker", with random values unless given."""
    channels = [pair.partition("=")[0] for pair in pairs]
    markers = [pair.partition("=")[2] for pair in pairs]
    keywords = {f"P{i}S": m for i, m in enumerate(markers, start=1)}
    var = pd.DataFrame(
        {
            "channel": channels,
            "marker": markers,
            "kind": channel_kinds(channels, keywords=keywords),
        },
        index=marker_names(channels, markers),
    )
    var["compensated"] = [is_compensated(name) for name in channels]
    values = np.random.default_rng(0).normal(size=(n, len(pairs))).astype(np.float32)
    for channel, column in columns.items():
        values[:, channels.index(channel)] = column
    obs = pd.DataFrame(
        {"sample": "a", "event": np.arange(n)}, index=[str(i) for i in range(n)], dtype=object
    )
    obs["event"] = obs["event"].astype(int)
    return ad.AnnData(values, obs=obs, var=var)


def read(adata):
    """Channels that a fit reads, and the text of its warning."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        samples = read_samples(adata, Source(sample_key="sample"))
    assert len(seen) <= 1
    channel = dict(zip(adata.var_names, adata.var["channel"], strict=True))
    assert samples.x.shape == (adata.n_obs, len(samples.markers))
    wanted = adata[:, samples.markers].X
    assert np.array_equal(samples.x, wanted)
    return [channel[m] for m in samples.markers], str(seen[0].message) if seen else ""


@pytest.mark.parametrize(
    ("pairs", "wanted", "reason"),
    [
        ("FSC-A FSC-H FITC-A=CD3 APC-A Time", "FSC-A FSC-H FITC-A", "without a marker"),
        ("FSC-A FITC-A=CD3 FITC-H PE-A=CD4", "FSC-A FITC-A PE-A", "area before height"),
        ("FITC-A Comp-FITC-A=CD3 PE-A=CD4", "Comp-FITC-A PE-A", "compensated"),
        ("FSC-A FITC-A PE-A Time", "FSC-A FITC-A PE-A", ""),
        ("FITC-A=CD3 Comp-FITC-A=CD3 PE-A=CD19", "Comp-FITC-A PE-A", "compensated"),
        ("FITC-A=CD3 FJComp-FITC-A", "FJComp-FITC-A", "compensated"),
        ("FITC-A=CD3 <FITC-A>=CD3", "<FITC-A>", "compensated"),
        ("FITC-A FITC-H FITC-W PE-H PE-W", "FITC-A PE-H", "area before height"),
        ("FITC-A=CD3 FITC-H=CD3 FITC-W=CD3", "FITC-A", "area before height"),
        ("FITC-A=CD3 FITC-H=CD3 Comp-FITC-A=CD3 Comp-FITC-H=CD3", "Comp-FITC-A", "compensated"),
        ("FL1-H=CD3 FL1-A", "FL1-H", "without a marker"),
        ("UV1-A V1-A B1-A BUV395-A FITC-A", "BUV395-A FITC-A", "raw detector"),
        ("UV1-A=UV1-A V1-A BUV395-A=CD3", "BUV395-A", "raw detector"),
        ("V1-A=CD3 V2-A=V2-A", "V1-A", "without a marker"),
        ("B1-A=CD3 FITC-A=CD3 PE-A=CD4", "FITC-A PE-A", "raw detector"),
        ("FITC-A=CD3 AF-A=AF PE-A=CD4", "FITC-A PE-A", "autofluorescence"),
        ("FITC-A PE-A AF-A", "FITC-A PE-A", "autofluorescence"),
        ("Er170Di=170Er_CD3 Ce140Di=140Ce_Beads Nd142Di", "Er170Di", "beads"),
        ("Er170Di=170Er_CD3 La139Di=139La", "Er170Di", "without a marker"),
        ("FITC-A=CD3 AF488-A=CD4 AF700-A=CD8", "FITC-A AF488-A AF700-A", ""),
        ("V1-A V2-A B1-A R1-A", "V1-A V2-A B1-A R1-A", ""),
        ("V1-A=CD3-VioBlue B1-A=CD4-FITC", "V1-A B1-A", ""),
        ("FITC-A=CD3 PE-A=CD3", "FITC-A PE-A", ""),
        ("EGFP-A=EGFP-A FITC-A=CD3", "EGFP-A FITC-A", ""),
    ],
)
def test_one_channel_is_read_per_stain_and_the_rest_is_named(pairs, wanted, reason):
    found, text = read(sample(*pairs.split()))
    assert found == wanted.split()
    assert reason in text
    assert bool(text) == bool(reason)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["FITC", "PE", "V1", "UV2", "AF", "Comp-FITC", "FSC"]),
            st.sampled_from(["-A", "-H", "-W"]),
            st.sampled_from(["", "=CD3", "=CD4"]),
        ),
        min_size=1,
        unique_by=lambda parts: parts[:2],
    )
)
def test_every_stain_is_read_or_left_out_with_a_reason(parts):
    adata = sample(*map("".join, parts))
    names = list(adata.var_names)
    try:
        chosen, left_out = default_channels(adata.var, names)
    except InvalidInputError:  # only raw detectors of a spectral instrument
        return
    assert sorted([*chosen, *left_out]) == sorted(names)
    assert all(left_out.values())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (7.0, "holds one value"),
        (np.arange(40), "only counts up"),
        (np.arange(40) // 3 * 10.0, "only counts up"),
        (np.arange(40) < 20, ""),
        (np.arange(40) >= 20, ""),  # sorted, but two values do not count
        (np.arange(40) % 39, ""),
        (-np.arange(40), ""),
    ],
)
def test_a_channel_that_holds_one_value_or_counts_up_is_no_marker(values, reason):
    found, text = read(sample("FSC-A", "FITC-A=CD3", "P7=CD4", **{"P7": values}))
    assert found == ["FSC-A", "FITC-A"] + ([] if reason else ["P7"])
    assert reason in text
    assert not text or "'CD4'" in text


def test_a_counter_is_found_in_events_of_any_order_by_their_number():
    adata = sample("FITC-A=CD3", "P7=CD4", P7=np.arange(40))
    shuffled = adata[np.random.default_rng(1).permutation(40)].copy()
    assert read(shuffled)[0] == ["FITC-A"]
    del shuffled.obs["event"]
    assert read(shuffled)[0] == ["FITC-A", "P7"]


def test_named_markers_are_read_whatever_they_are():
    adata = sample("FSC-A", "FITC-A=CD3", "FITC-H=CD3", "AF-A=AF", **{"FITC-A": 1.0})
    wanted = ["CD3 (FITC-H)", "CD3 (FITC-A)", "AF"]
    assert read_samples(adata, Source(), markers=wanted).markers == wanted


@pytest.mark.parametrize(
    ("adata", "message"),
    [
        (sample("FSC-A", "SSC-A", "Time"), r"only scatter.*'Time \(time\)'.*markers="),
        (sample("FSC-A", "FITC-A=CD3", **{"FITC-A": 1}), r"only scatter.*'CD3 \(fluorescence\)'"),
        (sample("Time", "UMAP_1"), r"read nothing.*'UMAP_1 \(other\)'"),
        (sample("FSC-A", "AF-A"), r"only scatter.*'AF-A \(fluorescence\)'"),
        (sample("FSC-A", "UV1-A", "UV2-A", "V1-A", "R1-A"), "raw detectors of a spectral.*unmixed"),
        (sample("FSC-A", *[f"V{i}-A" for i in range(1, 17)]), "raw detectors of a spectral"),
        (sample("FSC-A", "405CH1-A", "405CH2-A"), "raw detectors of a spectral"),
    ],
)
def test_a_fit_without_a_stain_is_refused_and_says_what_there_is(adata, message):
    adata.obs["label"] = ["x", "y"] * 20
    clf = ReluFormerClassifier(sample_key="sample", label_key="label", max_epochs=1)
    with pytest.raises(InvalidInputError, match=message):
        clf.fit(adata)


@given(
    st.permutations(["FSC-A", "FITC-A=CD3", "FITC-H=CD3", "Comp-FITC-A=CD3", "PE-A=CD4", "Time"])
)
def test_the_order_of_channels_does_not_change_what_is_read(pairs):
    found, _ = read(sample(*pairs))
    assert sorted(found) == ["Comp-FITC-A", "FSC-A", "PE-A"]
    assert found == [p.partition("=")[0] for p in pairs if p.partition("=")[0] in found]
