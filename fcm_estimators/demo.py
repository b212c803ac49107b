"""Demo on real samples: writes annotated AnnData, tables, pictures and a report.

Run ``make demo``, or ``python -m fcm_estimators.demo --output demo_output``.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from anndata import AnnData

    from fcm_estimators.classifier import ReluFormerClassifier

# Number of cells on a UMAP: enough to show populations, few enough to compute in a minute.
_SHOWN = 6000


def run_demo(output: str | Path = "demo_output", *, stream: TextIO | None = None) -> None:
    """Train on real data, annotate unseen samples, and write tables and pictures.

    If the real data are not in ``FCM_DATA_HOME`` or the cache and cannot be downloaded, the demo
    uses a simulated cohort and prints that it does.

    Parameters
    ----------
    output : path, default "demo_output"
        Directory for ``*.h5ad``, ``*.csv``, ``*.png``, a report and the saved models.
    stream : text stream, optional
        Stream for messages. Default: standard output.
    """
    from fcm_estimators.exceptions import DataUnavailableError

    out = stream or sys.stdout
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        leukaemia_demo(folder, out)
        batch_demo(folder, out)
    except DataUnavailableError as error:
        _say(out, f"The real data are not available: {error}")
        _say(out, "\nContinuing with the embedded SIMULATED cohort instead of real data.\n")
        simulated_demo(folder, out)
    _say(out, f"\nWritten to {folder}:")
    for path in sorted(folder.iterdir()):
        _say(out, f"  {path.name}")


def leukaemia_demo(folder: Path, out: TextIO) -> None:
    """Train on half of the cells of a paediatric B-ALL marrow (FCS file), annotate the rest."""
    from sklearn.pipeline import make_pipeline

    from fcm_estimators import ReluFormerClassifier
    from fcm_estimators.datasets import fetch_all494
    from fcm_estimators.preprocessing import Compensation, LinearTransform, LogicleTransform

    _say(out, "1. Blasts in a paediatric B-ALL bone marrow (real FCS file, 83,411 events)")
    raw = fetch_all494()
    adata = make_pipeline(Compensation(), LogicleTransform(), LinearTransform()).fit_transform(raw)
    half = np.random.default_rng(0).random(adata.n_obs) < 0.5
    train, test = adata[half].copy(), adata[~half].copy()
    clf = ReluFormerClassifier(
        sample_key="sample",
        label_key="cell_type",
        subset_key="intact",
        pos_label="blast",
        random_state=0,
        verbose=int(out.isatty()),
    )
    _fit(clf, train, out)
    clf.annotate(test)
    intact = test.obsm["gates"]["intact"].to_numpy()
    _report(test, intact, "intact", out)
    _save(clf, test, folder, "all494")
    _write_report(test, folder / "all494_report.html")
    shown = test[intact].copy()
    _draw_umap(shown, clf, folder / "all494_umap.png")


def batch_demo(folder: Path, out: TextIO) -> None:
    """Train on one batch of CyTOF samples, annotate the other, whose markers are shifted."""
    from fcm_estimators import ReluFormerClassifier
    from fcm_estimators.datasets import fetch_multicenter_cytof
    from fcm_estimators.metrics import classification_table
    from fcm_estimators.preprocessing import ArcsinhTransform

    _say(out, "\n2. Blood of 16 donors by CyTOF: train on batch 1, annotate the shifted batch 2")
    cohort = ArcsinhTransform(cofactor=5.0).fit_transform(fetch_multicenter_cytof())
    train = cohort[cohort.obs["batch"] == "batch1"].copy()
    test = cohort[cohort.obs["batch"] == "batch2"].copy()
    test.obs["sample"] = test.obs["sample"].cat.remove_unused_categories()
    clf = ReluFormerClassifier(
        sample_key="sample", label_key="cell_type", random_state=0, verbose=int(out.isatty())
    )
    _fit(clf, train, out)
    clf.annotate(test)
    table = classification_table(
        test.obs["cell_type"], test.obs["reluformer"], groups=test.obs["sample"]
    )
    _table(out, "Unseen samples", table.round(3))
    _say(out, f"Mean macro-F1 over {len(table)} unseen samples: {table['macro_f1'].mean():.3f}")
    table.to_csv(folder / "cytof_f1.csv")
    _save(clf, test, folder, "cytof")
    _draw_umap(test, clf, folder / "cytof_umap.png")


def simulated_demo(folder: Path, out: TextIO) -> None:
    """Train and annotate simulated B-ALL marrows with instrument shift, split by patient."""
    from sklearn.pipeline import make_pipeline

    from fcm_estimators import ReluFormerClassifier
    from fcm_estimators.datasets import simulate_cohort
    from fcm_estimators.preprocessing import Compensation, LinearTransform, LogicleTransform

    raw = simulate_cohort(n_samples=24, n_cells=10_000, random_state=0)
    cohort = make_pipeline(Compensation(), LogicleTransform(), LinearTransform()).fit_transform(raw)
    unseen = cohort.obs["patient"].isin(cohort.obs["patient"].unique()[:2]).to_numpy()
    train, test = cohort[~unseen].copy(), cohort[unseen].copy()
    clf = ReluFormerClassifier(
        sample_key="sample",
        label_key="cell_type",
        patient_key="patient",
        pos_label="blast",
        random_state=0,
        verbose=int(out.isatty()),
    )
    _fit(clf, train, out)
    clf.annotate(test)
    _report(test, test.obsm["gates"]["intact"].to_numpy(), "intact", out)
    _save(clf, test, folder, "simulated")
    first = test.obs["sample"].iloc[0]
    _write_report(test, folder / "simulated_report.html", sample=str(first))
    _draw_umap(test, clf, folder / "simulated_umap.png")


def _fit(clf: ReluFormerClassifier, train: AnnData, out: TextIO) -> None:
    start = time.perf_counter()
    clf.fit(train)
    seconds = time.perf_counter() - start
    cells = 4 * len(clf.history_) * clf.steps_per_epoch * clf.cells_per_sample
    _say(
        out,
        f"   trained on {train.n_obs:,} cells in {seconds:.0f} s "
        f"({len(clf.history_)} epochs, {cells / seconds:,.0f} drawn cells per second)",
    )


def _report(test: AnnData, inside: np.ndarray, gate: str, out: TextIO) -> None:
    """Print the blast classification and the MRD per sample."""
    from fcm_estimators.metrics import classification_table, mrd_table

    truth = test.obs["cell_type"].astype(object).where(inside)
    table = classification_table(
        truth, test.obs["reluformer"], groups=test.obs["sample"], pos_label="blast"
    )
    _table(out, f"Unseen cells inside the gate {gate}", table.round(4))
    mrd = mrd_table(
        test.obs["reluformer"] == "blast",
        denominator=inside,
        denominator_name=gate,
        groups=test.obs["sample"],
    )
    shown = mrd.drop(columns="words").round(5)
    _table(out, "Blast fraction (interval: counting error only)", shown)


def _save(clf: ReluFormerClassifier, adata: AnnData, folder: Path, name: str) -> None:
    clf.save(folder / f"{name}_model")
    clf.history_.to_csv(folder / f"{name}_history.csv", index=False)
    adata.write_h5ad(folder / f"{name}.h5ad", compression="lzf")


def _write_report(adata: AnnData, path: Path, sample: str | None = None) -> None:
    from fcm_estimators.report import write_report

    write_report(adata, path, sample=sample, denominator="intact", identifiers=True)


def _draw_umap(adata: AnnData, clf: ReluFormerClassifier, path: Path) -> None:
    """Draw a UMAP of some cells on the model's markers, coloured by label, class and certainty."""
    import matplotlib as mpl
    import scanpy as sc

    from fcm_estimators.colours import colours

    mpl.use("Agg")
    rows = np.random.default_rng(0).permutation(adata.n_obs)[:_SHOWN]
    shown = adata[np.sort(rows), clf.markers_].copy()
    shown.layers.clear()
    shown.obs["expert"] = shown.obs["cell_type"].astype(str).astype("category")
    shown.obs["ReluFormer"] = shown.obs["reluformer"].cat.remove_unused_categories()
    shown.obs["highest probability"] = shown.obsm["reluformer_proba"].max(axis=1)
    sc.pp.scale(shown)
    sc.pp.neighbors(shown, n_neighbors=15, use_rep="X", random_state=0)
    sc.tl.umap(shown, random_state=0)
    names = sorted(set(shown.obs["expert"]) | set(shown.obs["ReluFormer"]))
    palette = colours(names)
    figure = sc.pl.umap(
        shown,
        color=["expert", "ReluFormer", "highest probability"],
        palette=palette,
        size=12,
        ncols=3,
        wspace=0.35,
        frameon=False,
        show=False,
        return_fig=True,
    )
    figure.savefig(path, dpi=130, bbox_inches="tight")


def _table(out: TextIO, title: str, table: pd.DataFrame) -> None:
    _say(out, f"\n{title}:\n{table.to_string()}")


def _say(out: TextIO, text: str) -> None:
    out.write(text + "\n")
    out.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="demo_output", help="directory for the results")
    run_demo(parser.parse_args().output)
