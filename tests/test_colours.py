"""One colour per name, also where some names have colours already."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from fcm_estimators import ReluFormerClassifier
from fcm_estimators.colours import GREY, HEAD_HUES, HUES, colours, column_colours, set_colours
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from tests.helpers import toy_cohort


def test_names_get_the_hues_in_order_and_the_rest_is_grey():
    found = colours(["other", "blast", "T", "not analysed", "not cd19"])
    assert list(found) == ["other", "blast", "T", "not analysed", "not cd19"]
    assert found["other"] == found["not analysed"] == found["not cd19"] == GREY
    assert (found["blast"], found["T"]) == HUES[:2]


def test_further_names_change_no_colour_and_have_their_own():
    names = [f"p{i}" for i in range(30)]
    many = colours(names)
    assert len(set(many.values())) == 30
    for n in range(30):
        assert colours(names[:n]) == dict(list(many.items())[:n])
    assert colours([f"p{i}" for i in range(100)])["p99"] == GREY


def test_heads_have_a_colour_by_number_that_no_class_has():
    heads = colours(["head3", "head0", "none", "layer1_head3"])
    assert heads == {
        "head3": HEAD_HUES[3],
        "head0": HEAD_HUES[0],
        "none": GREY,
        "layer1_head3": HEAD_HUES[3],
    }
    assert not set(HUES) & set(HEAD_HUES)


def test_known_colours_stay_and_are_given_to_nobody_else():
    found = colours(["a", "b", "c"], {"b": HUES[0]})
    assert found == {"a": HUES[1], "b": HUES[0], "c": HUES[2]}
    # Two names that were given one colour in two columns can be told apart in a third.
    assert len(set(colours(["a", "b"], {"a": "red", "b": "red"}).values())) == 2


def labelled(**columns):
    obs = pd.DataFrame(columns, index=list("wxyz"))
    return ad.AnnData(np.zeros((4, 1), np.float32), obs=obs)


def test_a_name_has_the_colour_of_its_column_else_of_another_one():
    data = labelled(
        called=pd.Categorical(list("TTBB"), categories=["T", "B", "M"]),
        label=pd.Categorical(list("BBTM")),
        text=list("BTBT"),
    )
    assert column_colours(data, "label") == {"B": HUES[0], "M": HUES[1], "T": HUES[2]}
    data.uns["called_colors"] = np.array(["red", "green", "blue"])
    assert column_colours(data, "label") == {"B": "green", "M": "blue", "T": "red"}
    assert column_colours(data, "text") == {"B": "green", "T": "red"}
    data.uns["label_colors"] = ["#111111", "#222222", "#333333"]
    assert column_colours(data, "label") == {"B": "#111111", "M": "#222222", "T": "#333333"}
    # Fewer colours than categories count for nothing, as in scanpy.
    data.uns["label_colors"] = ["#111111"]
    assert column_colours(data, "label")["B"] == "green"
    with pytest.raises(MissingKeyError, match="'called', 'label'"):
        column_colours(data, "colour")


def test_colours_are_set_where_scanpy_looks_and_only_if_there_are_none():
    data = labelled(label=pd.Categorical(list("BBTM")), text=list("BTBT"))
    set_colours(data, "label")
    assert data.uns["label_colors"] == list(HUES[:3])
    data.uns["label_colors"] = ["red", "green", "blue"]
    set_colours(data, "label")
    assert data.uns["label_colors"] == ["red", "green", "blue"]
    with pytest.raises(InvalidInputError, match="astype"):
        set_colours(data, "text")
    with pytest.raises(InvalidInputError, match="is a view"):
        set_colours(data[:2], "label")
    assert set(data.uns) == {"label_colors"}


@pytest.mark.parametrize("store", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_results_bring_their_colours_in_memory_and_on_disk(tmp_path, store):
    data = toy_cohort(3, 60)
    data.obs["inside"] = np.arange(data.n_obs) % 4 > 0
    clf = ReluFormerClassifier(
        sample_key="sample",
        label_key="cell_type",
        subset_key="inside",
        max_epochs=1,
        steps_per_epoch=2,
        hidden_dim=16,
        n_layers=1,
        n_members=0,
    ).fit(data)
    path = tmp_path / f"a.{store}"
    getattr(data, f"write_{store}")(path)
    clf.annotate(data)
    assert list(data.uns["reluformer_colors"]) == [HUES[0], GREY, GREY]
    clf.annotate(path)
    back = getattr(ad, f"read_{store}")(path)
    assert list(back.uns["reluformer_colors"]) == list(data.uns["reluformer_colors"])
    # The user's colours of the classes stay, also if there is a category more or less.
    back.uns["reluformer_colors"] = ["blue", "yellow", "black"]
    getattr(back, f"write_{store}")(path)
    clf.set_params(subset_key=None)
    clf.annotate(path)
    clf.annotate(back)
    again = getattr(ad, f"read_{store}")(path)
    for one in (back, again):
        assert one.obs["reluformer"].cat.categories.tolist()[:2] == ["blast", "other"]
        assert list(one.uns["reluformer_colors"])[:2] == ["blue", "yellow"]
