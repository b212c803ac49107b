"""How large the report of 100,000 cells is, and how long a browser takes to open it.

Run ``python benchmarks/report.py``; needs chromium. The browser draws without a graphics card.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from explainers import AttentionExplainer, GradientExplainer
from fcm_estimators import PolygonRegressor, ReluFormerClassifier
from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.preprocessing import Compensation, LinearTransform, LogicleTransform
from fcm_estimators.quality import flag_quality
from fcm_estimators.report import write_report

GATES = {
    "syto": ("", "Syto 41", "FSC-A"),
    "singlets": ("syto", "FSC-A", "FSC-W"),
    "intact": ("singlets", "FSC-A", "SSC-A"),
    "cd19": ("intact", "CD19", "SSC-A"),
}
QUICK = {"sample_key": "sample", "max_epochs": 3, "random_state": 0}


def annotated(n_cells):
    """One sample with everything that a report can show, an embedding of chance included."""
    adata = simulate_cohort(n_samples=1, n_cells=n_cells, blast_fraction=0.01, random_state=0)
    flag_quality(adata)
    for step in (Compensation(), LogicleTransform(), LinearTransform()):
        adata = step.fit_transform(adata)
    clf = ReluFormerClassifier(label_key="cell_type", pos_label="blast", **QUICK).fit(adata)
    clf.annotate(adata)
    PolygonRegressor(GATES, **QUICK).fit(adata).annotate(adata)
    GradientExplainer(clf, target="blast", units="sd").explain(adata)
    AttentionExplainer(clf, net_layer=-1).explain(adata)
    adata.obsm["X_umap"] = adata[:, ["CD10", "CD45"]].X.copy()
    return adata


def opened(page, repeats):
    """Seconds until the cells are drawn, and until all pictures are, each time a new browser."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    times = []
    with sync_playwright() as playwright:
        for _ in range(repeats):
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1300, "height": 900})
            start = time.perf_counter()
            tab.goto(page.as_uri())
            tab.wait_for_selector("html[data-ready]", state="attached")
            ready = time.perf_counter() - start
            tab.wait_for_selector("html[data-complete]", state="attached")
            times.append((ready, time.perf_counter() - start))
            browser.close()
    return times


def main():
    adata = annotated(100_000)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        start = time.perf_counter()
        write_report(adata, page)
        print(f"written in {time.perf_counter() - start:.1f} s")
        print(f"{adata.n_obs:,} cells: {page.stat().st_size / 1e6:.1f} MB")
        ready, complete = (min(column) for column in zip(*opened(page, 5), strict=True))
    print(f"cells drawn after {ready:.1f} s, all pictures after {complete:.1f} s (least of 5)")


if __name__ == "__main__":
    main()
