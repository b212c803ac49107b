"""What the explanations show on real samples, with controls, and what they cost.

Run ``python benchmarks/explanations.py influence`` (or ``controls``, ``groupings``,
``specialisation``, ``layers``, ``directions``, ``context``, ``cost``, ``checks``, ``pictures``,
``all``). Models are trained on the binary label alone, with default parameters but those given and
without members, and everything is measured on cells they have not seen, except for ``layers``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from _explained import DATA, SETTINGS, TRAINING, controls_of, marrow
from scipy.stats import spearmanr
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, f1_score

from explainers import (
    AnyChange,
    AttentionExplainer,
    GradientExplainer,
    InfluenceExplainer,
    Share,
    faithfulness,
    plotting,
    specialisation,
)
from explainers._maths.attention import assigned_heads
from explainers._maths.information import conditional_information
from explainers.faithfulness._removal import clusters_of
from fcm_estimators._fitting.augmentation import Augmentation
from fcm_estimators.colours import set_colours
from fcm_estimators.inference import read_samples

# Layer whose heads are shown; the one in which the heads of training samples differ most.
LAYER = 0


def influence(seeds, n_samples=3):
    """Influence against what hiding groups of cells really changes, beside other explanations."""
    rows = []
    for name, make in DATA.items():
        for seed in seeds:
            clf, test = make(seed)
            chosen = test.obs["sample"].unique()[:n_samples]
            test = test[test.obs["sample"].isin(chosen)].copy()
            positive = clf.pos_label
            other = next(c for c in clf.classes_ if c != positive)
            cases = {
                f"log-odds of {positive}, all cells": (positive, None),
                f"log-odds of {positive}, cells called so": (positive, positive),
                f"log-odds of {other}, cells called so": (other, other),
                f"share called {positive}": (Share(positive), None),
                "any change, 64 probes": (AnyChange(64), None),
                "any change, 16 probes": (AnyChange(16), None),
            }
            for case, (target, of) in cases.items():
                explainer = InfluenceExplainer(clf, target, of=of)
                start = time.perf_counter()
                explainer.attribute(test)
                seconds = time.perf_counter() - start
                found = faithfulness.removal(explainer, test)
                rows.append(
                    {
                        "data": name,
                        "seed": seed,
                        "target": case,
                        "influence": found.agreement,
                        "twins": found.twins.mean(),
                        "distance": found.distance,
                        "shift": found.shift,
                        "size": found.size,
                        "correct": found.correct,
                        "seconds": seconds,
                    }
                )
                show(rows[-1:])
            rows += _attention_as_influence(name, seed, clf, test)
    table = pd.DataFrame(rows).drop(columns="seed")
    print(table.groupby(["data", "target"], sort=False).mean().round(3).to_string())


def _attention_as_influence(name, seed, clf, test):
    """Rank correlation of received attention, summed over groups, with any change."""
    explainer = InfluenceExplainer(clf, AnyChange())
    samples = read_samples(clf, test)
    group = clusters_of(samples, 60, 0)
    layers = [
        AttentionExplainer(clf, net_layer=layer).attribute(test).relative.mean(1)[samples.rows]
        for layer in range(clf.n_layers)
    ]
    scores = {
        "mean attention": np.mean(layers, axis=0),
        "attention of the first layer": layers[0],
        "attention of the last layer": layers[-1],
        "rollout": AttentionExplainer(clf).rollout(test)[samples.rows],
    }
    found = {what: [] for what in scores}
    for s, changes in enumerate(explainer.changes_without(test, samples, group)):
        rows = slice(samples.offsets[s], samples.offsets[s + 1])
        for what, score in scores.items():
            summed = np.bincount(group[rows], score[rows])
            found[what].append(spearmanr(summed, changes)[0])
    return [
        {"data": name, "seed": seed, "target": f"any change, by {what}", "influence": np.mean(v)}
        for what, v in found.items()
    ]


def controls(seeds):
    """Checks of learning beside their twins, for every layer."""
    rows = []
    for name, make in DATA.items():
        for seed in seeds:
            clf, test = make(seed)
            some = np.random.default_rng(0).random(test.n_obs) < 20_000 / test.n_obs
            part = test[some].copy()
            part.obs["population"] = part.obs["others"].fillna(str(clf.pos_label))
            twins = controls_of(name, seed)
            other = make(seed + 1)[0]
            for layer in range(clf.n_layers):
                own, second = (AttentionExplainer(m, net_layer=layer) for m in (clf, other))
                ablated = faithfulness.head_ablation(own, part, "population", twins=twins)
                deleted = faithfulness.attention_deletion(own, part, twins=twins)
                agreed = faithfulness.seed_agreement([own, second], part, twins=twins)
                told = specialisation(own, part, "others", label_key=clf.label_key, twins=twins)
                of_twins = np.concatenate([told.untrained, told.label_permuted])
                for check, result, effect, trivial, control in (
                    ("head ablation", ablated, ablated.effect, ablated.trivial, ablated.twins),
                    ("deletion", deleted, deleted.effect, deleted.trivial, deleted.twins),
                    ("seed agreement", agreed, agreed.agreement.mean(), np.nan, agreed.twins),
                    ("specialisation", told, told.information, told.distance, of_twins),
                ):
                    rows.append(
                        {
                            "data": name,
                            "seed": seed,
                            "layer": layer,
                            "check": check,
                            "effect": effect,
                            "trivial": trivial,
                            "twins_mean": control.mean(),
                            "twins_max": control.max(),
                            "holds": result.holds,
                        }
                    )
                show(rows[-4:])
    table = pd.DataFrame(rows).drop(columns="seed")
    keys = ["data", "check", "layer"]
    print(table.groupby(keys, sort=False).mean().round(3).to_string())


def layers(seeds, n_distortions=2):
    """Bits on distorted training samples, by which the layer to look at is chosen."""
    rows = []
    for name, make in DATA.items():
        for seed in seeds:
            clf, train = make(seed)[0], TRAINING[name](seed)[0]
            module = clf.net_.module_
            mean, scale = module.input_mean.numpy(), module.input_scale.numpy()
            columns = train.var_names.get_indexer(clf.markers_)
            for draw in range(n_distortions):
                rng, moved = np.random.default_rng(draw), train.copy()
                for sample in moved.obs["sample"].unique():
                    cells = np.flatnonzero(moved.obs["sample"] == sample)[:, None]
                    z = (moved.X[cells, columns] - mean) / scale
                    moved.X[cells, columns] = Augmentation().distort(z, rng) * scale + mean
                for layer in range(clf.n_layers):
                    found = specialisation(
                        AttentionExplainer(clf, net_layer=layer),
                        moved,
                        "others",
                        label_key=clf.label_key,
                        twins=controls_of(name, seed),
                        n_permutations=1,
                    )
                    ratio = found.information / found.untrained.mean()
                    rows.append({"data": name, "layer": layer, "ratio": ratio})
            print(f"{name}, seed {seed}", flush=True)
    table = pd.DataFrame(rows).groupby(["data", "layer"])["ratio"]
    print(table.agg(["mean", "min"]).round(2).to_string())


def specialised(seeds):
    """Bits that assigned heads hold about populations the model was never told."""
    rows = []
    for name, make in DATA.items():
        for seed in seeds:
            clf, test = make(seed)
            given = clf.label_key
            f1 = f1_score(test.obs[given], clf.predict(test), pos_label=clf.pos_label)
            for layer in range(clf.n_layers):
                result = specialisation(
                    AttentionExplainer(clf, net_layer=layer),
                    test,
                    "others",
                    label_key=given,
                    twins=controls_of(name, seed),
                )
                rows.append(
                    {
                        "data": name,
                        "seed": seed,
                        "layer": layer,
                        "bits": result.information,
                        "untrained": result.untrained.mean(),
                        "ratio": result.information / result.untrained.mean(),
                        "permuted_max": result.permuted.max(),
                        "label_permuted": result.label_permuted.max(),
                        "distance": result.distance,
                        "kmeans": result.kmeans,
                        "holds": result.holds,
                        "f1": f1,
                    }
                )
            show(rows[-clf.n_layers :])
    table = pd.DataFrame(rows)
    numbers = table.groupby(["data", "layer"])
    shown = [
        "bits",
        "untrained",
        "label_permuted",
        "permuted_max",
        "distance",
        "kmeans",
        "holds",
        "f1",
    ]
    summary = numbers[shown].mean()
    summary["lowest_ratio"] = numbers["ratio"].min()
    print(summary.round(4).to_string())


def groupings(seeds, n_groups=5, n_cells=40_000):
    """What heads, clusters of encodings and clusters of markers tell of populations and influence.

    ``bits``: about populations that no label named, given the label. ``influence``: share of the
    variance of the influence of cells, within samples, that lies between the groups. ``seeds``:
    adjusted Rand index with the same grouping of the next seed's model.
    """
    rows = []
    for name, make in DATA.items():
        for seed in seeds:
            clf, test = make(seed)
            keep = np.random.default_rng(0).random(test.n_obs) < n_cells / test.n_obs
            part = test[keep].copy()
            found, of_next = (_grouped(model, part, n_groups) for model in (clf, make(seed + 1)[0]))
            influence = InfluenceExplainer(clf).attribute(part)
            known = part.obs["others"].notna().to_numpy()
            codes = pd.factorize(part.obs["others"][known])[0]
            label = pd.factorize(part.obs[clf.label_key][known])[0]
            sample = part.obs["sample"].astype(str).to_numpy()
            within = influence - pd.Series(influence).groupby(sample).transform("mean")
            for what, group in found.items():
                left = within - within.groupby([sample, group]).transform("mean")
                rows.append(
                    {
                        "data": name,
                        "grouping": what,
                        "bits": conditional_information(group[known], codes, label),
                        "influence": 1 - left.var() / within.var(),
                        "seeds": adjusted_rand_score(group, of_next[what]),
                    }
                )
            show(rows[-len(found) :])
    table = pd.DataFrame(rows)
    mean = table.groupby(["data", "grouping"], sort=False).mean()
    print(mean.round(3).to_string())


def _grouped(clf, part, n_groups):
    """Group of each cell, by name of the grouping."""

    def clusters(x):
        return KMeans(n_groups, n_init=3, random_state=0).fit_predict(x)

    def encoding(model):
        with torch.no_grad():
            first = next(model.net_.module_.trace(torch.from_numpy(samples.x), samples.offsets))
        out = np.empty(first.output.shape, np.float32)
        out[samples.rows] = first.output.numpy()
        return out

    samples = read_samples(clf, part)
    z = np.empty_like(samples.x)
    for start, stop in samples.spans():
        x = samples.x[start:stop]
        z[samples.rows[start:stop]] = (x - x.mean(0)) / np.maximum(x.std(0), 1e-12)
    received = AttentionExplainer(clf, net_layer=LAYER).attribute(part).relative
    return {
        "heads of the first layer, or none": assigned_heads(received) + 1,
        f"{n_groups} clusters of its encoding": clusters(encoding(clf)),
        "the same of an untrained net": clusters(encoding(clf.untrained_twin(0))),
        f"{n_groups} clusters of markers, z-scores": clusters(z),
    }


def directions(seeds):
    """Share of called blasts that change class when each is moved by a step."""
    print(pd.concat([moved_blasts(seed) for seed in seeds]).round(5).to_string(index=False))


def moved_blasts(seed, n_random=20):
    """One model's table for :func:`directions`; the contexts stay those of the sample."""
    clf, test = marrow(seed)
    explainer = GradientExplainer(clf, target="blast", mode="own", units="sd")
    gradient = explainer.attribute(test)
    module = clf.net_.module_
    mean, scale = module.input_mean.numpy(), module.input_scale.numpy()
    x = test[:, clf.markers_].X
    z = (x - mean) / scale
    called = clf.predict(test) == "blast"
    truth = (test.obs["cell_type"] == "blast").to_numpy()
    blast = list(clf.classes_).index("blast")
    limit = clf.threshold_
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        contexts = module.contexts(torch.from_numpy(x))

    def switched(direction, step):
        unit = direction / np.linalg.norm(direction, axis=1, keepdims=True)
        moved = ((z + step * unit)[called] * scale + mean).astype(np.float32)
        with torch.no_grad():
            logits = module(torch.from_numpy(moved), contexts=contexts).numpy()
        return logits[:, blast] - logits[:, 1 - blast] < limit

    difference = np.tile(z[~truth].mean(0) - z[truth].mean(0), (len(z), 1))
    rows = []
    for step in (0.25, 0.5, 1.0, 2.0):
        random = [switched(rng.normal(size=z.shape), step) for _ in range(n_random)]
        ways = {
            "against own gradient": switched(-gradient, step),
            "along mean difference": switched(difference, step),
            "random": np.mean(random, axis=0),
        }
        for name, flags in ways.items():
            low, high = bootstrap(flags, rng)
            rows.append(
                {
                    "seed": seed,
                    "step_sd": step,
                    "direction": name,
                    "switched": flags.mean(),
                    "ci_low": low,
                    "ci_high": high,
                }
            )
    return pd.DataFrame(rows)


def bootstrap(values, rng, n=500):
    """95 % interval of the mean over cells."""
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(n)]
    return np.quantile(means, [0.025, 0.975])


def context(seeds):
    """Share of the set gradient that comes through the contexts, per population."""
    rows = []
    for seed in seeds:
        clf, test = marrow(seed)
        size = {}
        for mode in ("own", "set", "context"):
            gradient = GradientExplainer(clf, target="blast", mode=mode, units="sd").attribute(test)
            size[mode] = np.linalg.norm(gradient, axis=1)
        population = test.obs["others"].fillna("blast")
        for name in pd.unique(population):
            inside = (population == name).to_numpy()
            rows.append(
                {
                    "seed": seed,
                    "population": name,
                    "n_cells": inside.sum(),
                    **{f"mean_{mode}": values[inside].mean() for mode, values in size.items()},
                    "context_share": size["context"][inside].sum()
                    / (size["context"][inside] + size["own"][inside]).sum(),
                }
            )
    print(pd.DataFrame(rows).round(4).to_string())


def cost(seeds, n_cells=100_000, repeats=5):
    """Time of explanations relative to a prediction, interleaved, minima."""
    clf, test = marrow(seeds[0])
    rows = np.random.default_rng(0).integers(test.n_obs, size=n_cells)
    cells = test[rows].copy()
    cells.obs_names_make_unique()
    jobs = {
        "prediction": lambda: clf.predict_proba(cells),
        "attention": lambda: AttentionExplainer(clf).attribute(cells),
        "own": lambda: GradientExplainer(clf, mode="own").attribute(cells),
        "set": lambda: GradientExplainer(clf, mode="set").attribute(cells),
        "context": lambda: GradientExplainer(clf, mode="context").attribute(cells),
    }
    best = dict.fromkeys(jobs, np.inf)
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            best[name] = min(best[name], time.perf_counter() - start)
    print(f"{n_cells:,} cells, {torch.get_num_threads()} thread(s)")
    for name, seconds in best.items():
        print(f"{name:12s} {seconds:7.3f} s  {seconds / best['prediction']:5.2f} predictions")


def checks(seeds):
    """Every faithfulness check on the unseen half of the marrow."""
    clf, test = marrow(seeds[0])
    some = np.random.default_rng(0).random(test.n_obs) < 0.25
    part = test[some].copy()
    part.obs["population"] = part.obs["others"].fillna("blast")
    attention = AttentionExplainer(clf, net_layer=0)
    others = [AttentionExplainer(marrow(seed)[0], net_layer=0) for seed in seeds]
    twins = controls_of("all494", seeds[0])
    results = {
        "head ablation": faithfulness.head_ablation(attention, part, "population", twins=twins),
        "deletion, attention": faithfulness.attention_deletion(attention, part, twins=twins),
    }
    results["parameter randomisation, attention"] = faithfulness.parameter_randomisation(
        attention, part
    )
    results["sensitivity, attention"] = faithfulness.sensitivity(attention, part)
    if len(others) > 1:
        results["seed agreement"] = faithfulness.seed_agreement(others, part, twins=twins)
    for mode in ("own", "set", "context"):
        gradient = GradientExplainer(clf, target="blast", mode=mode)
        results[f"deletion, {mode}"] = faithfulness.deletion(gradient, part)
        whole = GradientExplainer(clf, target="blast", mode=mode, method="integrated")
        results[f"deletion, {mode}, integrated"] = faithfulness.deletion(whole, part)
        results[f"parameter randomisation, {mode}"] = faithfulness.parameter_randomisation(
            gradient, part
        )
        results[f"sensitivity, {mode}"] = faithfulness.sensitivity(gradient, part)
        if mode != "context":
            results[f"completeness, {mode}"] = faithfulness.completeness(gradient, part)
    for name, result in results.items():
        passed = result.correct if hasattr(result, "correct") else result.holds
        print(f"{name:36s} {'holds' if passed else 'FAILS'}")


def pictures(seeds, n_shown=8_000):
    """The pictures of docs/explanations.md, written to docs/images."""
    import scanpy as sc

    folder = Path(__file__).parents[1] / "docs" / "images"
    folder.mkdir(exist_ok=True)
    clf, test = marrow(seeds[0])
    some = np.sort(np.random.default_rng(0).permutation(test.n_obs)[:n_shown])
    gradient = GradientExplainer(clf, target="blast", units="sd")
    attention = AttentionExplainer(clf, net_layer=LAYER)
    clf.annotate(test)
    gradient.explain(test)
    attention.explain(test)
    influence = InfluenceExplainer(clf, "blast", of="blast")
    influence.explain(test)
    test.obs["population"] = test.obs["others"].fillna("blast").astype("category")
    set_colours(test, "population")
    shown = test[some].copy()
    # Only the markers the model reads: Time would make clusters of its own.
    embedded = sc.pp.scale(shown[:, clf.markers_].copy(), copy=True)
    sc.pp.neighbors(embedded, use_rep="X", random_state=0)
    sc.tl.umap(embedded, random_state=0)
    shown.obsm["X_umap"] = embedded.obsm["X_umap"]
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    plotting.InfluenceDisplay.from_explanation(test, "CD45", "CD10").plot(panels[0])
    plotting.InfluenceDisplay.from_explanation(shown).plot(panels[1])
    figure.savefig(folder / "influence.png", dpi=80)
    displays = {
        "influence_between": plotting.InfluenceMatrixDisplay.from_between(
            influence.between(test, "population"), name="change of the log-odds of blast"
        ),
        "gradient_field": plotting.GradientFieldDisplay.from_explanation(test, "CD45", "CD10"),
        "gradient_cells": plotting.GradientFieldDisplay.from_explanation(
            test, "CD45", "CD10", arrows="cells"
        ),
        "attention_plane": plotting.AttentionDisplay.from_explanation(shown, "CD45", "CD10"),
        "attention_heads": plotting.AttentionDisplay.from_explanation(shown),
        "gradient_summary": plotting.GradientSummaryDisplay.from_summary(
            gradient.summary(test, "population")
        ),
        "head_ablation": plotting.HeadMatrixDisplay.from_head_ablation(
            faithfulness.head_ablation(
                attention, shown, "population", twins=controls_of("all494", seeds[0])
            )
        ),
        "specialisation": plotting.HeadMatrixDisplay.from_specialisation(
            specialisation(
                attention,
                test,
                "others",
                label_key="cell_type",
                twins=controls_of("all494", seeds[0]),
                n_permutations=20,
            )
        ),
        "deletion": plotting.CurveDisplay.from_deletion(faithfulness.deletion(gradient, shown)),
        "randomisation": plotting.CurveDisplay.from_parameter_randomisation(
            faithfulness.parameter_randomisation(gradient, shown)
        ),
    }
    for name, display in displays.items():
        display.plot().figure_.savefig(folder / f"{name}.png", dpi=80)
        print(folder / f"{name}.png")
    with plt.rc_context({"figure.figsize": (2.6, 2.6)}):
        sc.pl.umap(
            shown, color=["population", "attention_head", "gradient_norm"], show=False, wspace=0.65
        )
    plt.savefig(folder / "umap.png", dpi=80, bbox_inches="tight")


def show(rows):
    """Print rows as they come."""
    for row in rows:
        print({k: round(float(v), 4) if isinstance(v, float) else v for k, v in row.items()})


if __name__ == "__main__":
    parts = {
        "influence": influence,
        "controls": controls,
        "groupings": groupings,
        "layers": layers,
        "specialisation": specialised,
        "directions": directions,
        "context": context,
        "cost": cost,
        "checks": checks,
        "pictures": pictures,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[*parts, "all"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--models", type=Path, help="keep fitted models here and use them again")
    parser.add_argument("--head-diversity", type=float, default=SETTINGS.head_diversity)
    parser.add_argument("--head-evenness", type=float, default=SETTINGS.head_evenness)
    parser.add_argument("--n-heads", type=int, default=SETTINGS.n_heads)
    parser.add_argument("--hidden-dim", type=int, default=SETTINGS.hidden_dim)
    parser.add_argument("--data", choices=list(DATA), help="default: both")
    given = parser.parse_args()
    for name in set(DATA) - {given.data or name for name in DATA}:
        del DATA[name]
    for name in vars(SETTINGS):
        setattr(SETTINGS, name, getattr(given, name))
    for name, part in parts.items():
        if given.what in (name, "all"):
            print(f"\n== {name}: {part.__doc__}", flush=True)
            part(given.seeds)
