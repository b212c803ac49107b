"""Results where scanpy looks for them: columns of ``obs`` and a mask of channels."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

from fcm_estimators import ReluFormerClassifier, scores_to_obs
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from tests.helpers import toy_cohort

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning")


@pytest.fixture(scope="module")
def annotated():
    data = toy_cohort(4, 150)
    markers = list(data.var_names)
    time = ad.AnnData(
        np.arange(data.n_obs, dtype=np.float32)[:, None] * 1e4,
        obs=data.obs, var=pd.DataFrame(index=["Time"]),
    )  # fmt: skip
    data = ad.concat([data, time], axis=1, merge="first", uns_merge="first")
    clf = ReluFormerClassifier(
        sample_key="sample", label_key="cell_type", pos_label="blast", markers=markers,
        max_epochs=1, steps_per_epoch=5, n_members=0, random_state=0,
    ).fit(data)  # fmt: skip
    clf.annotate(data)
    return data, clf


def test_the_mask_leaves_time_out_of_an_embedding(annotated):
    data, clf = annotated
    mask = data.var["reluformer_markers"]
    assert mask[clf.markers_].all()
    assert not mask["Time"]
    sc.pp.pca(data, mask_var="reluformer_markers", n_comps=2)
    assert np.abs(data.varm["PCs"][data.var_names.get_loc("Time")]).max() == 0
    time = data[:, "Time"].X.ravel()
    assert abs(np.corrcoef(data.obsm["X_pca"][:, 0], time)[0, 1]) < 0.5


@pytest.mark.parametrize("ending", [".h5ad", ".zarr"])
def test_a_store_gets_the_same_mask(annotated, tmp_path, ending):
    data, clf = annotated
    path = tmp_path / f"a{ending}"
    plain = ad.AnnData(data.X, obs=data.obs[["sample"]], var=pd.DataFrame(index=data.var_names))
    (plain.write_h5ad if ending == ".h5ad" else plain.write_zarr)(path)
    for _ in range(2):  # the second call replaces the column
        clf.annotate(path)
    read = ad.read_h5ad(path) if ending == ".h5ad" else ad.read_zarr(path)
    pd.testing.assert_series_equal(
        read.var["reluformer_markers"], data.var["reluformer_markers"], check_names=False
    )


def test_scores_become_columns_that_a_plot_can_colour_by(annotated):
    data = annotated[0].copy()
    names = scores_to_obs(data)
    assert names == [f"{c}_probability" for c in data.obsm["reluformer_proba"]]
    np.testing.assert_allclose(data.obs[names].sum(axis=1), 1, atol=1e-6)
    data.obsm["attention_layer0"] = pd.DataFrame({"head1": 1.0}, index=data.obs_names)
    assert scores_to_obs(data, "attention_layer0") == ["attention_layer0_head1"]
    assert (data.obs["attention_layer0_head1"] == 1).all()


def test_what_has_no_names_is_refused(annotated):
    data = annotated[0].copy()
    data.obsm["X_umap"] = np.zeros((data.n_obs, 2))
    before = list(data.obs)
    with pytest.raises(InvalidInputError, match="columns have no names"):
        scores_to_obs(data, "X_umap")
    with pytest.raises(MissingKeyError, match="mine"):
        scores_to_obs(data, "mine")
    with pytest.raises(InvalidInputError, match="view"):
        scores_to_obs(data[:5])
    assert list(data.obs) == before
