"""From public files to predictions on cells the model has not seen."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline

from fcm_estimators import PolygonRegressor, ReluFormerClassifier
from fcm_estimators.datasets import fetch_all494, fetch_multicenter_cytof
from fcm_estimators.preprocessing import (
    ArcsinhTransform,
    Compensation,
    LinearTransform,
    LogicleTransform,
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Channels that are not read. .APC-Cy7-A.:UserWarning")
@pytest.mark.real_data
def test_blasts_of_the_unseen_half_are_found_inside_the_intact_gate():
    prepare = make_pipeline(Compensation(), LogicleTransform(), LinearTransform())
    adata = prepare.fit_transform(fetch_all494())
    half = np.random.default_rng(1).random(adata.n_obs) < 0.5
    train, test = adata[half].copy(), adata[~half].copy()
    clf = ReluFormerClassifier(
        sample_key="sample",
        label_key="cell_type",
        subset_key="intact",
        pos_label="blast",
        max_epochs=15,
        random_state=0,
    ).fit(train)
    inside = test.obsm["gates"]["intact"].to_numpy()
    predicted = clf.predict(test)
    assert set(predicted[~inside]) == {"not analysed"}
    assert f1_score(test.obs["cell_type"][inside] == "blast", predicted[inside] == "blast") > 0.985


@pytest.mark.slow
@pytest.mark.real_data
def test_gates_learnt_on_two_batches_hold_in_unseen_samples_of_both():
    cohort = fetch_multicenter_cytof([1, 2, 9, 10, 3, 11])
    cohort = ArcsinhTransform(cofactor=5.0).fit_transform(cohort)
    cell_type = cohort.obs["cell_type"].astype(str)
    gates = pd.DataFrame({name: cell_type == name for name in ("CD4 T", "CD8 T", "monocyte")})
    cohort.obsm["gates"] = gates.assign(T=gates["CD4 T"] | gates["CD8 T"])
    unseen = cohort.obs["sample"].isin(["sample3", "sample11"]).to_numpy()
    planes = {
        "T": ("", "c6", "c3"),
        "CD4 T": ("T", "c7", "c5"),
        "CD8 T": ("T", "c7", "c5"),
        "monocyte": ("", "c3", "c6"),
    }
    reg = PolygonRegressor(planes, sample_key="sample", max_epochs=10, random_state=0)
    table = reg.fit(cohort[~unseen].copy()).score_table(cohort[unseen].copy())
    assert (table.groupby("gate")["f1"].mean() > 0.9).all()
