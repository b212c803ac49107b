"""Figures of the polygon regressor, beside fixed gates, hulls and what a star can hold at best.

Run ``python benchmarks/gating.py multicenter`` (or ``batches``, ``simulated``, ``shapes``,
``all494``, ``pictures``, ``all``). Gates are applied in sequence, each inside its predicted parent;
test samples are used for nothing but the figures.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import shapely

from explainers import AttentionExplainer, GateQuery, GradientExplainer, Vertex
from explainers.plotting import GateDisplay
from explainers.plotting.style import raw_ticks
from fcm_estimators import PolygonRegressor, ReluFormerClassifier
from fcm_estimators._fitting.gate_hulls import RARE, hull_of
from fcm_estimators.datasets import fetch_all494, fetch_multicenter_cytof, simulate_cohort
from fcm_estimators.gating import BooleanGate, GatingTree
from fcm_estimators.gating.pictures import outline_in_frame
from fcm_estimators.metrics import classification_table, gate_agreement, mrd_error, summarize
from fcm_estimators.preprocessing import (
    ArcsinhTransform,
    Compensation,
    LinearTransform,
    LogicleTransform,
)

CYTOF_GATES = {
    "T": ("", "c6", "c3"),
    "CD4 T": ("T", "c7", "c5"),
    "CD8 T": ("T", "c7", "c5"),
    "B": ("", "c0", "c6"),
    "monocyte": ("", "c3", "c6"),
}
# The published tree; the blasts are what is in all three of the last planes.
BLAST_GATES = {
    "syto": ("", "Syto 41", "FSC-A"),
    "singlets": ("syto", "FSC-W", "SSC-A"),
    "intact": ("singlets", "FSC-A", "SSC-A"),
    "cd19": ("intact", "CD19", "SSC-A"),
    "blast_cd45_cd10": ("cd19", "CD45", "CD10"),
    "blast_cd20_cd10": ("cd19", "CD20", "CD10"),
    "blast_cd38_cd10": ("cd19", "CD38", "CD10"),
}
PLANES = [name for name in BLAST_GATES if name.startswith("blast")]
BLAST_GATES["blast"] = BooleanGate("blast", "and", tuple(PLANES), parent="cd19")


def applied(trees, test):
    """Membership of every sample in its tree; rows as ``test``."""
    parts = [
        (trees[s] if isinstance(trees, dict) else trees).apply(test[test.obs["sample"] == s])
        for s in test.obs["sample"].unique()
    ]
    return pd.concat(parts).loc[test.obs_names]


def hulls(test, planes):
    """Convex hull of the test sample's own true cells, trimmed at 3 SD."""
    planes = {name: plane for name, plane in planes.items() if isinstance(plane, tuple)}
    trees = {}
    for s in test.obs["sample"].unique():
        cells = test[test.obs["sample"] == s]
        member = pd.DataFrame(cells.obsm["gates"])
        drawn = {name: plane for name, plane in planes.items() if member[name].sum() >= 20}
        trees[s] = GatingTree.from_labels(cells, member, drawn)
    return trees


def compared(reg, test, planes, *, with_hulls=True):
    """Agreement of predicted gates, fixed gates, own hulls and own stars with the expert."""
    trees = {
        "predicted": reg.predict_gates(test),
        "fixed gates": reg.tree_,
        "ceiling (own star)": reg.trace_gates(test),
    }
    if with_hulls:
        trees["own hull, trimmed"] = hulls(test, planes)
    sample = test.obs["sample"].astype(str).to_numpy()
    truth = pd.DataFrame(test.obsm["gates"])
    return pd.concat(
        gate_agreement(truth, applied(tree, test), groups=sample).assign(gates=name)
        for name, tree in trees.items()
    )


def shown(table, order):
    """Mean F1 per gate, a row per kind of gates and seed."""
    wide = table.pivot_table(index=["gates", "seed"], columns="gate", values="f1", observed=True)
    wide = wide[[name for name in order if name in wide]]
    print(wide.round(4).to_string(), flush=True)
    print("mean over seeds:")
    print(wide.groupby("gates").mean().round(4).to_string(), flush=True)


def trained(gates, train, seed, **params):
    """Fit with default parameters; prints the seconds."""
    start = time.perf_counter()
    reg = PolygonRegressor(gates, sample_key="sample", random_state=seed, **params).fit(train)
    print(
        f"seed {seed}: trained in {time.perf_counter() - start:.0f} s, {len(reg.history_)} epochs",
        flush=True,
    )
    return reg


def tightness(reg, train, test):
    """Area of each predicted outline, as drawn, over that of the hull of the training cells.

    The hull holds 99.5 % of the cells inside, of all training samples together. Rare gates, and
    gates that are open at an end of an axis, are left out of the summary: the hull of few cells is
    too small, and a picture ends an open gate where the cells end.
    """
    trees = list(reg.predict_gates(test).values())
    expert = pd.DataFrame(train.obsm["gates"])
    is_open = reg.net_.module_.gates.is_open.any(2).any(0).numpy()
    rows, left_out = [], {}
    for name, at_end in zip(reg.gates_, is_open, strict=True):
        plane = reg.tree_[name]
        columns = [train.var_names.get_loc(m) for m in plane.markers]
        inside = expert[name].fillna(False).to_numpy(dtype=bool)
        if inside.sum() < RARE:
            left_out.setdefault(f"fewer than {RARE:,} cells inside", []).append(name)
        elif at_end:
            left_out.setdefault("open at an end of an axis", []).append(name)
        if not inside.any():
            continue
        hull = hull_of(np.asarray(train.X[:, columns], dtype=float)[inside])
        drawn = [outline_in_frame(train, plane.markers, tree[name].vertices) for tree in trees]
        ratios = [shapely.Polygon(outline).area / hull.area for outline in drawn]
        rows += [(name, int(inside.sum()), at_end, ratio) for ratio in ratios]
    table = pd.DataFrame(rows, columns=["gate", "cells", "open", "ratio"])
    print("area of the outline over that of the hull:")
    print(table.groupby("gate", sort=False).median().round(2).to_string())
    judged = table[(table["cells"] >= RARE) & ~table["open"]]
    if len(judged):
        found = judged["ratio"].quantile([0.5, 0.95]).round(2).tolist()
        print(f"{judged['gate'].nunique()} of {len(reg.gates_)} gates are judged: ", end="")
        print(f"median {found[0]}, 95 % below {found[1]}")
    for reason, names in left_out.items():
        print(f"{len(names)} of {len(reg.gates_)} left out, {reason}: {', '.join(names)}")


def cytof_cohort():
    """Cohort with the expert's gates from its labels."""
    cohort = ArcsinhTransform(cofactor=5.0).fit_transform(fetch_multicenter_cytof())
    cell_type = cohort.obs["cell_type"].astype(str)
    gates = pd.DataFrame({name: cell_type == name for name in CYTOF_GATES if name != "T"})
    gates.insert(0, "T", gates["CD4 T"] | gates["CD8 T"])
    cohort.obsm["gates"] = gates
    return cohort


def cytof():
    """12 training samples of two batches, 4 unseen ones."""
    cohort = cytof_cohort()
    unseen = cohort.obs["sample"].isin([f"sample{i}" for i in (7, 8, 15, 16)]).to_numpy()
    return cohort[~unseen].copy(), cohort[unseen].copy()


def multicenter(seeds):
    """CyTOF of two batches, 12 samples to learn from, 4 unseen."""
    train, test = cytof()
    tables = []
    for seed in seeds:
        reg = trained(CYTOF_GATES, train, seed)
        tables.append(compared(reg, test, CYTOF_GATES).assign(seed=seed))
        tightness(reg, train, test)
    shown(pd.concat(tables), CYTOF_GATES)


def z_scores(adata):
    """Each marker of each sample with mean 0 and SD 1."""
    adata = adata.copy()
    for sample in adata.obs["sample"].unique():
        rows = (adata.obs["sample"] == sample).to_numpy()
        x = adata.X[rows]
        adata.X[rows] = (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)
    return adata


def batches(seeds):
    """CyTOF, one batch to learn from, the other to test; fixed gates also on z-scores."""
    cohort = cytof_cohort()
    first = (cohort.obs["batch"] == "batch1").to_numpy()
    for name, rows in (("batch 1", first), ("batch 2", ~first)):
        print(f"trained on {name}:")
        train, test = cohort[rows].copy(), cohort[~rows].copy()
        sample = test.obs["sample"].astype(str).to_numpy()
        tables = []
        for seed in seeds:
            reg = trained(CYTOF_GATES, train, seed)
            # Fixed gates are those from which training starts, so one step is enough.
            fixed = trained(CYTOF_GATES, z_scores(train), seed, max_epochs=1, steps_per_epoch=1)
            scored = gate_agreement(
                pd.DataFrame(test.obsm["gates"]),
                applied(fixed.tree_, z_scores(test)),
                groups=sample,
            )
            tables.append(compared(reg, test, CYTOF_GATES, with_hulls=False).assign(seed=seed))
            tables.append(scored.assign(gates="fixed gates, z-scores", seed=seed))
        shown(pd.concat(tables), CYTOF_GATES)


def leukaemia(seed):
    """Simulated cohort, a third of the patients for the test."""
    cohort = simulate_cohort(n_samples=120, n_cells=10_000, random_state=seed)
    for step in (Compensation(), LogicleTransform(), LinearTransform()):
        cohort = step.fit_transform(cohort)
    patients = cohort.obs["patient"].unique()
    unseen = np.random.default_rng(seed).permutation(patients)[: len(patients) // 3]
    is_test = cohort.obs["patient"].isin(unseen).to_numpy()
    return cohort[~is_test].copy(), cohort[is_test].copy()


def simulated(seeds):
    """Simulated B-ALL cohorts with instrument shift, split by patient; the published tree."""
    tables, cells, errors = [], [], []
    for seed in seeds:
        train, test = leukaemia(seed)
        reg = trained(BLAST_GATES, train, seed, patient_key="patient")
        tables.append(compared(reg, test, BLAST_GATES, with_hulls=False).assign(seed=seed))
        tightness(reg, train, test)
        clf = ReluFormerClassifier(
            sample_key="sample",
            label_key="cell_type",
            patient_key="patient",
            pos_label="blast",
            random_state=seed,
        ).fit(train)
        fixed = np.where(applied(reg.tree_, test)["blast"], "blast", "other")
        expert = np.where(test.obsm["gates"]["blast"], "blast", "other")
        truth = test.obs["cell_type"].astype(str).to_numpy()
        groups = test.obs["sample"].astype(str).to_numpy()
        for name, called in (
            ("polygon regressor", reg.predict_cells(test)),
            ("fixed gates", fixed),
            ("the expert's gates", expert),
            ("cell classifier", clf.predict(test)),
        ):
            table = classification_table(truth, called, groups=groups, pos_label="blast")
            cells.append({"seed": seed, "model": name, **summarize(table)})
            share = [
                pd.Series(v == "blast").groupby(groups, sort=False).mean() for v in (truth, called)
            ]
            errors.append(mrd_error(*share).assign(model=name))
    shown(pd.concat(tables), BLAST_GATES)
    print("\nBlasts against the simulated truth:")
    columns = ["f1_mean", "f1_median", "n_samples", "f1_undefined"]
    columns.append("false_positives_per_million_negative_samples")
    print(pd.DataFrame(cells).groupby("model")[columns].mean().round(4).to_string())
    print("\nMRD error by order of magnitude of the true blast fraction, mean over seeds:")
    stacked = pd.concat(errors)
    stacked.index.name = "true fraction"
    mean = stacked.groupby(["model", "true fraction"]).mean()
    print(mean.to_string(float_format="{:.2g}".format), flush=True)


def odd_shapes(n_samples, seed):
    """Samples with a bent population, and with a crescent, among a uniform background."""
    rng = np.random.default_rng(seed)
    blocks, tables = [], []
    for _ in range(n_samples):
        x = rng.uniform(-2, 4, size=(4000, 4))
        bend = ((x[:, :2] > 0) & (x[:, :2] < 2)).all(1) & ~(x[:, :2] > 0.7).all(1)
        radius, angle = np.hypot(*x[:, 2:].T - 1), np.arctan2(*(x[:, 2:].T - 1))
        crescent = (radius > 1) & (radius < 1.6) & (np.abs(angle) < 2.6)
        # The background is thin, so that the populations show.
        kept = bend | crescent | (rng.random(len(x)) < 0.4)
        shift = 0.5 * rng.normal(size=4)
        blocks.append(x[kept] + shift)
        tables.append(np.column_stack([bend, crescent])[kept])
    names = np.repeat([f"s{i}" for i in range(n_samples)], [len(b) for b in blocks])
    obs = pd.DataFrame({"sample": names}, index=[f"{n}:{i}" for i, n in enumerate(names)])
    adata = ad.AnnData(np.concatenate(blocks).astype("f4"), obs=obs)
    adata.var_names = list("ABCD")
    columns = ["boomerang", "crescent"]
    adata.obsm["gates"] = pd.DataFrame(np.concatenate(tables), index=obs.index, columns=columns)
    return adata


def shapes(seeds):
    """A 90-degree boomerang, which is a star, and a crescent, which is none; shifted samples."""
    planes = {"boomerang": ("", "A", "B"), "crescent": ("", "C", "D")}
    tables = []
    for seed in seeds:
        train, test = odd_shapes(20, seed), odd_shapes(6, 1000 + seed)
        reg = trained(planes, train, seed)
        tables.append(compared(reg, test, planes).assign(seed=seed))
    shown(pd.concat(tables), planes)


def marrow(seed):
    """One half of a leukaemic marrow in eight pseudo-samples, and the other half."""
    adata = fetch_all494()
    for step in (Compensation(), LogicleTransform(), LinearTransform()):
        adata = step.fit_transform(adata)
    gates = pd.DataFrame(adata.obsm["gates"])[["syto", "singlets", "intact", "cd19", "blast"]]
    adata.obsm["gates"] = gates.assign(**dict.fromkeys(PLANES, gates["blast"]))
    rng = np.random.default_rng(seed)
    half = rng.random(adata.n_obs) < 0.5
    train, test = adata[half].copy(), adata[~half].copy()
    train.obs["sample"] = rng.integers(8, size=train.n_obs).astype(str)
    return train, test


def all494(seeds):
    """Half of a leukaemic marrow's cells in pseudo-samples; the other half is the test."""
    tables = []
    for seed in seeds:
        train, test = marrow(seed)
        reg = trained(BLAST_GATES, train, seed)
        table = compared(reg, test, BLAST_GATES, with_hulls=False).assign(seed=seed)
        tightness(reg, train, test)
        # The planes alone have no expert of their own; their AND has.
        tables.append(table[~table["gate"].isin(PLANES)])
    shown(pd.concat(tables), BLAST_GATES)


def pictures(seeds):
    """The gates of the marrow with the cells that move them, written to docs/images."""
    folder = Path(__file__).parents[1] / "docs" / "images"
    train, test = marrow(seeds[0])
    reg = trained(BLAST_GATES, train, seeds[0])
    tree = next(iter(reg.predict_gates(test).values()))
    expert = next(iter(hulls(test, BLAST_GATES).values()))
    vertex = int(tree["cd19"].vertices[:, 0].argmin())
    GradientExplainer(reg, Vertex("cd19", vertex, "x")).explain(test)
    figure, grid = plt.subplots(2, 2, figsize=(9.5, 8), layout="constrained")
    axes = grid.ravel()
    GateDisplay.from_tree(test, tree, "cd19", expert=expert, key="gradient").plot(axes[0])
    GateDisplay.from_tree(test, tree, "blast_cd45_cd10", expert=expert).plot(axes[1])
    GateDisplay.from_tree(test, tree, "intact", expert=expert).plot(axes[3])
    for ax, place in zip(
        axes[[0, 1, 3]], ("upper right", "lower left", "lower right"), strict=True
    ):
        ax.legend(loc=place, frameon=False, fontsize="small")
    AttentionExplainer(reg, queries=GateQuery("cd19")).explain(test)
    received = test.obsm[f"attention_layer{reg.n_layers}"]
    head = received.var().idxmax()
    plane = tree["cd19"]
    inside = tree.apply(test)["intact"].to_numpy()
    x, y = (test.X[inside, test.var_names.get_loc(m)] for m in (plane.x, plane.y))
    order = np.argsort(received[head].to_numpy()[inside])
    points = axes[2].scatter(
        x[order],
        y[order],
        c=received[head].to_numpy()[inside][order],
        s=1,
        cmap="viridis",
        rasterized=True,
    )
    axes[2].set(xlim=axes[0].get_xlim(), ylim=axes[0].get_ylim())
    outline = outline_in_frame(test, (plane.x, plane.y), plane.vertices)
    axes[2].add_patch(mpl.patches.Polygon(outline, fill=False, edgecolor="#D55E00", linewidth=2))
    raw_ticks(axes[2].xaxis, test, plane.x)
    raw_ticks(axes[2].yaxis, test, plane.y)
    axes[2].set(xlabel=plane.x, ylabel=plane.y, title=f"what the query of cd19 looks at ({head})")
    figure.colorbar(points, ax=axes[2], label="received attention, 1 = uniform")
    figure.savefig(folder / "gates.png", dpi=90)


if __name__ == "__main__":
    mpl.use("Agg")
    parts = {
        "multicenter": multicenter,
        "batches": batches,
        "simulated": simulated,
        "shapes": shapes,
        "all494": all494,
        "pictures": pictures,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[*parts, "all"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    for name, part in parts.items():
        if given.what in (name, "all"):
            print(f"\n== {name}: {part.__doc__}", flush=True)
            part(given.seeds)
