"""From public files to predictions on cells the model has not seen."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline

from fcm_estimators import ReluFormerClassifier
from fcm_estimators.datasets import fetch_all494
from fcm_estimators.preprocessing import Compensation, LinearTransform, LogicleTransform


@pytest.mark.slow
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
