"""The pictures of the README, of the start page and of reports; run ``python docs/pictures.py``.

``python docs/pictures.py reports`` makes those of reports alone, ``... start`` that of the start
page. Needs the public marrow, and chromium for the pictures of reports. Those of the other pages
come from ``benchmarks/explanations.py pictures`` and ``benchmarks/gating.py pictures``.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

from explainers import AttentionExplainer, GradientExplainer
from explainers.plotting import GateDisplay, GradientFieldDisplay
from fcm_estimators import PolygonRegressor, ReluFormerClassifier
from fcm_estimators.cli import app
from fcm_estimators.colours import column_colours
from fcm_estimators.datasets import fetch_all494
from fcm_estimators.gating import GatingTree
from fcm_estimators.metrics import (
    CourseDisplay,
    MethodComparisonDisplay,
    course_table,
    method_comparison,
    mrd_of_counts,
)
from fcm_estimators.preprocessing import Compensation, LinearTransform, LogicleTransform
from fcm_estimators.quality import flag_quality
from fcm_estimators.report import write_report

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
GATES = {
    "syto": ("", "Syto 41", "FSC-A"),
    "intact": ("syto", "FSC-A", "SSC-A"),
    "cd19": ("intact", "CD19", "SSC-A"),
}


def marrow():
    """Half of the marrow, called and gated by models of the other half, with reasons."""
    raw = fetch_all494()
    flag_quality(raw)
    adata = raw
    for step in (Compensation(), LogicleTransform(), LinearTransform()):
        adata = step.fit_transform(adata)
    half = np.random.default_rng(0).random(adata.n_obs) < 0.5
    train, test = adata[half].copy(), adata[~half].copy()
    clf = ReluFormerClassifier(
        sample_key="sample",
        label_key="cell_type",
        subset_key="intact",
        pos_label="blast",
        head_diversity=0.1,
        random_state=0,
    ).fit(train)
    # Eight parts of the sample, so that gates have something to vary over.
    train.obs["part"] = (np.arange(train.n_obs) % 8).astype(str)
    test.obs["part"] = "unseen"
    reg = PolygonRegressor(GATES, sample_key="part", random_state=0).fit(train)
    clf.annotate(test)
    reg.annotate(test)
    GradientExplainer(clf, "blast", units="sd").explain(test)
    AttentionExplainer(clf, net_layer=0).explain(test)
    return clf, reg, test


def embed(clf, test, n_cells=6000):
    """UMAP of some intact cells, on the model's markers."""
    import scanpy as sc

    intact = np.flatnonzero(test.obsm["gates"]["intact"].to_numpy())
    rows = np.sort(np.random.default_rng(0).permutation(intact)[:n_cells])
    shown = test[rows].copy()
    part = sc.pp.scale(shown[:, clf.markers_].copy(), copy=True)
    sc.pp.neighbors(part, use_rep="X", random_state=0)
    sc.tl.umap(part, random_state=0)
    shown.obsm["X_umap"] = part.obsm["X_umap"]
    return shown


def overview(reg, test, shown):
    """From a sample to classes, gates and reasons, in four panels."""
    figure, grid = plt.subplots(2, 2, figsize=(11, 9), layout="constrained")
    axes = grid.ravel()
    x, y = shown.obsm["X_umap"].T
    order = np.random.default_rng(0).permutation(len(x))
    style = {"s": 4, "lw": 0, "rasterized": True}
    for ax, column in zip(axes, ("reluformer", "attention_head"), strict=False):
        names, hues = shown.obs[column].astype(str), column_colours(shown, column)
        ax.scatter(x[order], y[order], c=names.map(hues).to_numpy()[order], **style)
        for name in sorted(set(names)):
            ax.scatter([], [], c=hues[name], s=30, label=name)
    axes[0].set_title("which cells are blasts\n(one marrow, unseen cells, UMAP)")
    axes[1].set_title("what the model looked at\n(head that looks most at a cell)")
    for ax in axes[:2]:
        ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
        ax.legend(
            frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=5, columnspacing=1
        )
    GradientFieldDisplay.from_explanation(test, "CD45", "CD10").plot(axes[2])
    axes[2].set_title("why: where the model\nwould be surer of a blast")
    tree = reg.predict_gates(test)["unseen"]
    expert = GatingTree.from_labels(test, test.obsm["gates"], GATES)
    GateDisplay.from_tree(test, tree, "cd19", expert=expert).plot(axes[3])
    axes[3].set_title("gates for this very sample\n(predicted, and the expert's cells)")
    figure.savefig(IMAGES / "overview.png", dpi=80)


def start_page():
    """The picture of the start page, by its own code."""
    page = (DOCS / "start.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names = {}
    for block in blocks[:-1]:
        exec(block, names)
    names["figure"].savefig(IMAGES / "start.png", dpi=90, bbox_inches="tight")
    Path("umap.png").unlink()


def photographed(pages):
    """Pictures of reports as a browser shows them, down to the positive cells.

    ``pages`` has the page, by name of the picture.
    """
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name, page in pages.items():
            tab = browser.new_page(viewport={"width": 1280, "height": 1000})
            tab.goto(page.resolve().as_uri())
            tab.wait_for_selector("html[data-complete]", state="attached", timeout=120_000)
            tab.wait_for_timeout(1000)
            box = tab.locator("#positive").bounding_box()
            size = {"x": 0, "y": 0, "width": 1280, "height": box["y"] + box["height"] + 20}
            picture = IMAGES / f"{name}.png"
            tab.screenshot(path=picture, full_page=True, clip=size)
            tab.close()
            # A third of the size.
            Image.open(picture).convert("RGB").quantize(96).save(picture, optimize=True)
        browser.close()


def report(shown):
    """The report of the marrow."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        write_report(shown, page, denominator="intact")
        photographed({"report": page})


def patient():
    """Reports of the patient of the page "From tube to report", by its own code."""
    text = (DOCS / "howto" / "tube-to-report.md").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for kind, block in re.findall(r"```(python|sh)\n(.*?)```", text, flags=re.DOTALL):
            if kind == "python":
                exec(compile(block, "tube-to-report.md", "exec"), {})
                continue
            for line in block.replace("\\\n", " ").splitlines():
                app(shlex.split(line)[1:], standalone_mode=False)
        of_patient(Path("reports"))


def of_patient(folder):
    """Pictures of two of the patient's reports."""
    photographed({f"report-day{day}": folder / f"anna_day{day}.html" for day in (33, 78)})


def laboratory():
    """A comparison of methods and a course of a patient, simulated."""
    rng = np.random.default_rng(0)
    true = 10 ** rng.uniform(-5, -0.5, 80)
    names = [f"sample {i}" for i in range(80)]
    manual, automatic = (
        mrd_of_counts(
            pd.DataFrame(
                {
                    "numerator": rng.binomial(500_000, np.minimum(factor * noise * true, 1)),
                    "denominator": 500_000,
                },
                index=names,
            ),
            denominator_name="intact",
        )
        for factor, noise in ((1.0, 1.0), (1.2, 10 ** rng.normal(0, 0.2, 80)))
    )
    found = method_comparison(manual, automatic, cut_off=1e-3)
    MethodComparisonDisplay(found).plot().figure_.savefig(IMAGES / "comparison.png", dpi=90)
    counts = {
        "numerator": [210_000, 900, 30, 7, 0, 15],
        "denominator": [500_000, 480_000, 450_000, 520_000, 30_000, 1_000],
    }
    results = mrd_of_counts(pd.DataFrame(counts), denominator_name="intact")
    table = course_table(results.assign(patient="1", day=[0, 15, 33, 78, 106, 134]))
    display = CourseDisplay.from_table(table, "1", title="", cut_offs=(1e-4,))
    display.plot().figure_.savefig(IMAGES / "course.png", dpi=90)


def main():
    if sys.argv[1:] == ["start"]:
        start_page()
        return
    reports_alone = sys.argv[1:] == ["reports"]
    if not reports_alone:
        laboratory()
    clf, reg, test = marrow()
    shown = embed(clf, test)
    report(shown)
    patient()
    if not reports_alone:
        overview(reg, test, shown)
        start_page()


if __name__ == "__main__":
    main()
