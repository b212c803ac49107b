"""The report of a sample: what it says, what it withholds, and what it does in a browser."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from explainers import AttentionExplainer, GradientExplainer
from fcm_estimators import PolygonRegressor, ReluFormerClassifier
from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.metrics import (
    ClassificationErrors,
    Protocol,
    course_table,
    mrd_of_counts,
    mrd_table,
    pool_tubes,
)
from fcm_estimators.metrics._total_interval import Spread
from fcm_estimators.preprocessing import (
    Compensation,
    LinearTransform,
    LogicleTransform,
    parse_transform,
)
from fcm_estimators.quality import flag_quality
from fcm_estimators.report import _cells, _tables, report_files, write_report

NAME = "Quittenbaum, Hedwig 1961"
NASTY = "</script><img src=x onerror=alert(1)>"
TINY = {"n_layers": 1, "hidden_dim": 8, "max_epochs": 3, "steps_per_epoch": 20, "random_state": 0}
GATES = {"syto": ("", "Syto 41", "FSC-A"), "cd19": ("syto", "CD19", "SSC-A")}


@pytest.fixture(scope="module")
def sample():
    """One sample with class, gates, gradients, attention, flags and an embedding."""
    raw = simulate_cohort(n_samples=1, n_cells=3000, blast_fraction=0.2, random_state=0)
    flag_quality(raw)
    adata = raw
    for step in (Compensation(), LogicleTransform(), LinearTransform()):
        adata = step.fit_transform(adata)
    adata.obs["sample"] = pd.Categorical([NAME] * adata.n_obs)
    adata.obs["patient"] = pd.Categorical(["Hedwig Quittenbaum"] * adata.n_obs)
    labels = adata.obs["cell_type"].astype(str).replace("other", NASTY.replace("/", "|"))
    adata.obs["cell_type"] = labels.astype("category")
    keys = {"sample_key": "sample", "patient_key": "patient"}
    clf = ReluFormerClassifier(
        label_key="cell_type", pos_label="blast", n_members=0, **keys, **TINY
    ).fit(adata)
    clf.annotate(adata)
    PolygonRegressor(GATES, **keys, **TINY).fit(adata).annotate(adata)
    GradientExplainer(clf, target="blast", units="sd").explain(adata)
    AttentionExplainer(clf, net_layer=-1).explain(adata)
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    return adata


@pytest.fixture(scope="module")
def page(sample, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(sample, path, denominator="cd19")
    return path


def embedded(path):
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    return json.loads(found.group(1))


def columns(path):
    return {(c["group"], c["name"]): c for c in embedded(path)["columns"]}


class Text(HTMLParser):
    """Text of the elements that have an id or belong to the fields to fill in."""

    def __init__(self):
        super().__init__()
        self.found, self.open, self.sign, self.term = {}, [], {}, None
        self.boxes = []  # class of the parent of each table

    def handle_starttag(self, tag, attrs):
        if tag in ("meta", "link", "input", "img"):
            return
        attrs = dict(attrs)
        if tag == "table":
            self.boxes.append(self.open[-1][2])
        self.open.append((tag, attrs.get("id"), attrs.get("class")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag  # every element is closed in its parent

    def handle_data(self, data):
        for _, name, _ in self.open:
            if name is not None:
                self.found[name] = self.found.get(name, "") + data
        tag = self.open[-1][0] if self.open else None
        if tag in ("dt", "dd") and any(kind == "sign" for _, _, kind in self.open):
            if tag == "dt":
                self.term = data
            self.sign[self.term] = data if tag == "dd" else ""


def parsed(path):
    parser = Text()
    text = path.read_text(encoding="utf-8")
    parser.feed(text[: text.index('<script id="data"')])
    return parser


def said(path):
    return parsed(path).found


def annotated_with(sample, **entries):
    changed = sample.copy()
    changed.uns["reluformer"] = {**changed.uns["reluformer"], **entries}
    return changed


# -- what it says -------------------------------------------------------------------------------


def test_residual_disease_is_that_of_the_table(sample, page):
    # The expert's gate comes before the predicted one of the same name.
    row = mrd_table(
        sample.obs["reluformer"] == "blast",
        denominator=sample.obsm["gates"]["cd19"],
        denominator_name="cd19",
    ).iloc[0]
    text = page.read_text(encoding="utf-8")
    assert f'<td id="mrd-value">{100 * row["fraction"]:.3g} %</td>' in text
    assert f"{row['numerator']:,}</td>" in text
    assert f"{row['denominator']:,} cd19</td>" in text
    assert row["detection"] in text
    assert said(page)["result"] == row["words"]


def test_a_result_on_which_members_disagree_is_not_quantifiable(sample, page, tmp_path):
    adata = sample.copy()
    record = dict(adata.uns["reluformer"])
    names = ("share", "lowest", "highest", "possible")
    shares = {name: np.array([v]) for name, v in zip(names, (0.2, 0.01, 0.4, 0.6), strict=True)}
    cells = {"sample": np.array([NAME]), "class": np.array(["blast"])}
    record["members"] = {**cells, **shares, "uncertain": np.array([True])}
    adata.uns["reluformer"] = record
    write_report(adata, tmp_path / "torn.html", denominator="cd19")
    text = (tmp_path / "torn.html").read_text(encoding="utf-8")
    assert "members disagree" in text
    assert "1 % to 40 %; possible 60 %" in text
    assert "members disagree" not in page.read_text(encoding="utf-8")
    assert "none: how sure the model is" in page.read_text(encoding="utf-8")


def review(sample, path, **options):
    """What speaks against the result, as a list, and without what a good model does not have."""
    write_report(sample, path, **{"denominator": "cd19", **options})
    text = said(path).get("review", "")
    assert not text or text.startswith("Review before use: ")
    return text.removeprefix("Review before use: ").removesuffix(".").split("; ") if text else []


@pytest.fixture(scope="module")
def good(sample):
    """A sample of which nothing speaks against the result."""
    changed = annotated_with(sample, n_patients_tested=10, unknown_usual=0.01)
    distance = changed.uns["reluformer"]["distance"]
    distance = {**distance, "far": np.zeros(len(distance["far"]), dtype=bool)}
    changed.uns["reluformer"]["distance"] = distance
    changed.obs["reluformer_unknown"] = False
    for flag in changed.obs.filter(like="qc_"):
        changed.obs[flag] = False
    return changed


def test_nothing_is_said_where_nothing_speaks_against_the_result(good, tmp_path):
    assert review(good, tmp_path / "r.html") == []
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    own = text[: text.index('<script id="data"')].lower()
    assert 'class="warning" id="review"' not in own
    assert "confidence" not in own
    assert "\u2713" not in own
    assert "\u2705" not in own


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"n_patients_tested": 6}, "tested on 6 patients"),
        ({"n_patients_tested": 1}, "tested on 1 patient"),
        ({"n_patients_tested": 0}, "the model was not tested on any patient"),
        ({"missing_markers": np.array(["CD34"], dtype=object)}, "the data lack 'CD34'"),
    ],
)
def test_the_review_tells_what_the_model_lacks(good, tmp_path, entries, words):
    assert review(annotated_with(good, **entries), tmp_path / "r.html") == [words]


def test_an_untested_model_gives_no_result_and_says_why(good, tmp_path):
    missing = np.array(["CD34"], dtype=object)
    untested = annotated_with(good, missing_markers=missing, tested=False)
    found = review(untested, tmp_path / "r.html")
    assert "the model was not tested without these markers" in found
    assert said(tmp_path / "r.html")["result"].startswith("No result")
    unrecorded = annotated_with(good)
    del unrecorded.uns["reluformer"]["n_patients_tested"]
    assert "not recorded" in review(unrecorded, tmp_path / "r.html")[0]
    damaged = annotated_with(good, n_patients_tested="some")
    with pytest.raises(InvalidInputError, match=r"n_patients_tested.*Annotate the file again"):
        review(damaged, tmp_path / "r.html")


def test_the_review_tells_of_unknown_cells_above_the_usual(good, tmp_path):
    strange, n_cells = good.copy(), good.n_obs
    others = np.flatnonzero(strange.obs["reluformer"] != "blast")[: int(0.031 * n_cells)]
    strange.obs.iloc[others, strange.obs.columns.get_loc("reluformer_unknown")] = True
    assert review(strange, tmp_path / "r.html") == [
        "3.1 % of cells resemble no training population"
    ]
    usual = annotated_with(strange, unknown_usual=0.03)
    assert review(usual, tmp_path / "r.html") == []


def test_the_review_tells_of_markers_far_from_training(good, tmp_path):
    distance = good.uns["reluformer"]["distance"]
    far = np.isin(np.asarray(distance["marker"]), ["CD10", "CD34"])
    found = review(annotated_with(good, distance={**distance, "far": far}), tmp_path / "r.html")
    assert len(found) == 1
    assert found[0].startswith("2 markers are far from training: ")
    assert "CD10" in found[0]
    assert "CD34" in found[0]


def test_the_review_tells_of_positive_cells_that_are_odd(good, tmp_path):
    odd = good.copy()
    called = (odd.obs["reluformer"] == "blast") & odd.obsm["gates"]["cd19"].to_numpy()
    rows = np.flatnonzero(called)
    n_odd = len(rows) // 9
    odd.obs.iloc[rows[:n_odd], odd.obs.columns.get_loc("qc_doublet")] = True
    words = f"{n_odd} of {len(rows)} positive cells are flagged by quality control"
    assert review(odd, tmp_path / "r.html") == [words]
    outside = good.copy()
    outside.obs["qc_doublet"] = ~called.to_numpy()
    assert review(outside, tmp_path / "r.html") == []


def test_the_review_tells_of_a_missing_denominator_or_gate(good, tmp_path):
    path = tmp_path / "r.html"
    assert "all analysed cells are counted" in review(good, path, denominator=None)[0]
    predicted = good.copy()
    del predicted.obsm["gates"]
    assert review(predicted, path) == ["the denominator gate cd19 is predicted, not drawn"]
    torn = good.copy()
    inside = torn.obsm["gates"].astype("boolean")
    inside.iloc[:12, inside.columns.get_loc("cd19")] = pd.NA
    torn.obsm["gates"] = inside
    words = "the gate cd19 is missing for 12 cells, counted as outside"
    assert review(torn, path) == [words]


def test_numbers_have_three_digits_at_most_and_no_exponent():
    for value, text in ((1.23456e-9, "0.000000123 %"), (0.123456, "12.3 %"), (1.0, "100 %")):
        assert _tables.percent(value) == text


def test_the_page_says_to_which_markers_the_output_responds(sample, page, tmp_path):
    gradient = np.zeros((sample.n_obs, sample.n_vars))
    columns = sample.var_names.get_indexer(["CD10", "CD34", "CD45"])
    blast = (sample.obs["reluformer"] == "blast").to_numpy()
    gradient[np.ix_(blast, columns)] = [3, -2, 1]
    gradient[np.ix_(~blast, columns)] = [0, 0, 9]
    one = sample.copy()
    one.layers["gradient"] = gradient
    write_report(one, tmp_path / "r.html")
    words = "responds most to CD10 and CD34. This describes the model, not the disease."
    assert said(tmp_path / "r.html")["responds"] == f"The model's output {words}"
    # Per unit of the data, a narrow marker counts less.
    one.uns["gradient"] = {**one.uns["gradient"], "units": "layer"}
    one.X[:, columns[:2]] = np.asarray(one.X[:, columns[:2]]) / 100
    write_report(one, tmp_path / "r.html")
    assert "responds most to CD45 and" in said(tmp_path / "r.html")["responds"]


def test_protocol_and_errors_are_those_of_the_table(sample, page, tmp_path):
    protocol = Protocol("our lab", 1, 2, sensitivity=0.1, source="SOP 7")
    errors = ClassificationErrors(Spread(-8, 0.5, 20), Spread(2, 0.5, 20))
    options = {"denominator": "cd19", "protocol": protocol}
    write_report(sample, tmp_path / "own.html", errors=errors, **options)
    row = mrd_table(
        sample.obs["reluformer"] == "blast",
        denominator=sample.obsm["gates"]["cd19"],
        denominator_name="cd19",
        protocol=protocol,
        errors=errors,
    ).iloc[0]
    text = (tmp_path / "own.html").read_text(encoding="utf-8")
    assert said(tmp_path / "own.html")["result"] == row["words"]
    assert "LOD (1 events)" in text
    assert "our lab. SOP 7" in text
    assert f"{100 * row['ci_total_low']:.2g} % to {100 * row['ci_total_high']:.2g} %" in text
    assert "wrongly classified cells</th>" not in page.read_text(encoding="utf-8")
    few = dataclasses.replace(errors, why="9 patients with positive cells; 10 are needed")
    write_report(sample, tmp_path / "few.html", errors=few, **options)
    assert "not estimable (9 patients" in (tmp_path / "few.html").read_text(encoding="utf-8")
    other = sample.copy()
    other.uns["reluformer"] = {**other.uns["reluformer"], "model_sha256": "a"}
    with pytest.raises(InvalidInputError, match="another model"):
        write_report(other, tmp_path / "x.html", errors=dataclasses.replace(errors, model="b"))


def test_another_denominator_gives_another_number(sample, page, tmp_path):
    write_report(sample, tmp_path / "all.html")
    found = [
        re.search(r'id="mrd-value">([^<]*)<', p.read_text(encoding="utf-8")).group(1)
        for p in (page, tmp_path / "all.html")
    ]
    assert found[0] != found[1]


def test_every_section_is_there_and_linked(page):
    text = page.read_text(encoding="utf-8")
    names = ["cells", "positive", "gates", "why", "mrd", "classes", "quality", "distance", "model"]
    found = re.findall(r'<section id="(\w+)">', text)
    assert found == names  # the pictures first, then tables, then cards
    assert re.findall(r'href="#(\w+)"', text) == ["cells", *names]  # a link to skip to the cells
    assert text.index('id="result"') < text.index('id="review"') < text.index('id="cells"')


def test_values_come_back_from_the_page_within_a_thousandth_of_their_range(sample, page):
    column = columns(page)["Markers", "CD10"]
    stored = np.frombuffer(base64.b64decode(column["data"]), "<u2").astype(float)
    values = column["low"] + stored * (column["high"] - column["low"]) / 65_534
    expected = np.asarray(sample[:, "CD10"].X).ravel()
    np.testing.assert_allclose(values, expected, atol=1e-3 * np.ptp(expected))


def test_missing_values_have_a_code_of_their_own():
    values = np.array([1.0, np.nan, 3.0])
    column = _cells.packed("Markers", "m", values, np.arange(3), {})
    assert np.frombuffer(base64.b64decode(column["data"]), "<u2").tolist() == [0, 65_535, 65_534]
    same = _cells.packed("Markers", "m", np.full(3, np.nan), np.arange(3), {})
    assert same["low"] < same["high"]


def test_classes_and_heads_have_the_colours_of_uns(sample, tmp_path):
    shown = sample.copy()
    shown.uns["reluformer_colors"] = ["#0000ff", *list(shown.uns["reluformer_colors"])[1:]]
    write_report(shown, tmp_path / "r.html")
    columns = {c["name"]: c for c in embedded(tmp_path / "r.html")["columns"]}
    for name, column in (("class", "reluformer"), ("head that looks most", "attention_head")):
        names = shown.obs[column].cat.categories
        wanted = dict(zip(names, shown.uns[f"{column}_colors"], strict=True))
        drawn = dict(zip(columns[name]["categories"], columns[name]["colours"], strict=True))
        assert {n: c for n, c in drawn.items() if n != "not analysed"} == {
            n: wanted[n].lower() for n in drawn if n != "not analysed"
        }
    assert columns["expert's label"]["colours"][0] == "#0000ff"


def test_without_an_embedding_the_first_view_tells_the_classes_apart(sample, tmp_path):
    bare = sample.copy()
    del bare.obsm["X_umap"], bare.uns["predicted_gates"], bare.uns["gates"]
    write_report(bare, tmp_path / "r.html")
    data = embedded(tmp_path / "r.html")
    assert data["views"] == []
    shown = [data["columns"][i]["name"] for i in data["axes"]]
    values = bare[:, bare.uns["reluformer"]["markers"]].to_df()
    blast = (bare.obs["reluformer"] == "blast").to_numpy()
    apart = (values[blast].mean() - values[~blast].mean()).abs() / values.std()
    assert apart[shown[0]] == apart.max()


def test_ticks_are_raw_values_where_the_transform_puts_them(page):
    column = columns(page)["Markers", "CD10"]
    places, labels = column["ticks"]
    assert "10<sup>4</sup>" in labels
    at = places[labels.index("10<sup>4</sup>")]
    scaled, raw = (np.array(v) for v in column["raw"])
    assert np.interp(at, scaled, raw) == pytest.approx(1e4, rel=0.02)


def test_a_large_sample_is_drawn_in_part_and_counted_whole(sample, tmp_path):
    path = tmp_path / "part.html"
    write_report(sample, path, max_cells=1500)
    column = columns(path)["Cells", "class"]
    drawn = np.bincount(np.frombuffer(base64.b64decode(column["data"]), np.uint8))
    blast = column["categories"].index("blast")
    n_blast = int((sample.obs["reluformer"] == "blast").sum())
    assert drawn.sum() == 1500
    assert drawn[blast] >= min(n_blast, 750)
    assert sum(column["counts"]) == sample.n_obs
    assert "1,500 of 3,000 cells are drawn" in path.read_text(encoding="utf-8")


# Cells are repeated to make a large sample.
@pytest.mark.filterwarnings("ignore:Observation names are not unique:UserWarning")
def test_a_hundred_thousand_cells_stay_below_15_mb(sample, tmp_path):
    rows = np.random.default_rng(0).integers(sample.n_obs, size=100_000)
    large = sample[np.sort(rows)].copy()
    path = tmp_path / "large.html"
    write_report(large, path)
    assert path.stat().st_size < 15_000_000
    assert "All 100,000 cells are drawn" in path.read_text(encoding="utf-8")


def test_explanations_of_the_page_are_those_of_the_explainer(sample, page):
    figure = embedded(page)["why"][0]
    markers = figure["data"][0]["x"]
    assert len(markers) == len(sample.uns["reluformer"]["markers"])
    inside = (sample.obs["reluformer"] == "blast").to_numpy()
    position = figure["data"][0]["y"].index("blast")
    text = figure["data"][0]["text"][position][markers.index("CD10")]
    expected = sample[inside, "CD10"].layers["gradient"].mean()
    assert float(text) == pytest.approx(expected, rel=0.06)


# -- positive cells and what is near them -----------------------------------------------------


def near_figures(path):
    """Traces by name of each picture of the positive cells, and the titles of its axes."""
    found = []
    for figure in embedded(path)["positive"]:
        traces = {t.get("name", "density"): t for t in figure["data"]}
        axes = [figure["layout"][a]["title"]["text"] for a in ("xaxis", "yaxis")]
        found.append((traces, axes))
    return found


def values_of(trace, axis):
    """Values of a trace; plotly writes arrays as base64."""
    values = trace[axis]
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])
    return np.asarray(values, dtype="f4")


def test_positive_cells_are_drawn_over_their_nearest_others(sample, page):
    inside = sample.obsm["gates"]["cd19"].to_numpy()
    blast = (sample.obs["reluformer"] == "blast").to_numpy() & inside
    gate, *planes = near_figures(page)
    assert gate[1] == ["CD19", "SSC-A"]  # the denominator gate, on its own plane
    assert f"blast ({blast.sum()})" in gate[0]
    assert {"predicted", "expert"} & set(gate[0])
    assert [axes for _, axes in planes] == [["CD45", "CD10"], ["CD20", "CD10"]]
    for traces, axes in planes:
        drawn = traces[f"blast ({blast.sum()})"]
        for axis, marker in zip("xy", axes, strict=True):
            wanted = np.asarray(sample[blast, marker].X, dtype="f4").ravel()
            np.testing.assert_array_equal(values_of(drawn, axis), wanted)
        [near] = [t for name, t in traces.items() if name.startswith("nearest")]
        others = np.asarray(sample[inside & ~blast, axes[0]].X, dtype="f4").ravel()
        assert np.isin(values_of(near, "x"), others).all()
    # What is near is nearer than the other cells that were not called.
    z = sample[:, sample.uns["reluformer"]["markers"]].to_df()
    z = ((z - z.mean()) / z.std()).to_numpy()
    rows = np.flatnonzero(inside & ~blast)
    distance = np.linalg.norm(z[rows][:, None] - z[blast][None], axis=2).min(axis=1)
    x = np.asarray(sample[rows, "CD20"].X, dtype="f4").ravel()
    is_near = np.isin(x, values_of(next(t for n, t in planes[1][0].items() if "near" in n), "x"))
    assert distance[is_near].mean() < distance[~is_near].mean()


def test_ticks_of_the_positive_cells_are_raw_values(page):
    for figure in embedded(page)["positive"][1:]:
        for axis in ("xaxis", "yaxis"):
            assert "10<sup>4</sup>" in figure["layout"][axis]["ticktext"]


def test_without_the_usual_markers_those_that_separate_are_drawn(sample, tmp_path):
    other = sample.copy()
    names = {"CD20": "one", "CD10": "two", "CD45": "three"}
    other.var_names = [names.get(name, name) for name in other.var_names]
    record = dict(other.uns["reluformer"])
    record["markers"] = np.array([names.get(m, m) for m in record["markers"]], dtype=object)
    other.uns["reluformer"] = record
    del other.uns["predicted_gates"], other.uns["gates"]
    # One marker tells the called cells from all others.
    blast = (other.obs["reluformer"] == "blast").to_numpy()
    other.X[:, other.var_names.get_loc("CD34")] = np.where(blast, 5.0, 1.0)
    write_report(other, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "area under the ROC curve: CD34 (1.00)," in text
    assert all(axes[1] == "CD34" for _, axes in near_figures(tmp_path / "r.html"))


def test_without_a_positive_cell_those_most_like_one_are_drawn(sample, tmp_path):
    none = sample.copy()
    none.obs["reluformer"] = none.obs["reluformer"].cat.rename_categories(lambda c: c)
    blast = none.obs["reluformer"] == "blast"
    kept = none[~blast.to_numpy()].copy()
    write_report(kept, tmp_path / "r.html", denominator="cd19")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "No cell in cd19 was called blast. Drawn are the" in text
    shares = kept.obsm["reluformer_proba"]["blast"].to_numpy()[kept.obsm["gates"]["cd19"]]
    x = np.asarray(kept[kept.obsm["gates"]["cd19"].to_numpy(), "CD45"].X, dtype="f4").ravel()
    _, (traces, _), _ = near_figures(tmp_path / "r.html")
    [shown] = [values_of(t, "x") for name, t in traces.items() if name.startswith("most like")]
    assert sorted(shown) == sorted(x[np.argsort(-shares, kind="stable")[: len(shown)]])


# -- the course of the patient ------------------------------------------------------------------


@pytest.fixture(scope="module")
def course(sample):
    """Three days of the patient; the sample is that of the second."""
    inside = sample.obsm["gates"]["cd19"].to_numpy()
    n_blasts = int(((sample.obs["reluformer"] == "blast").to_numpy() & inside).sum())
    counts = pd.DataFrame(
        {"numerator": [400, n_blasts, 0], "denominator": [1000, int(inside.sum()), 300_000]},
        index=["first", NAME, "last"],
    )
    results = mrd_of_counts(counts, denominator_name="cd19")
    results = results.assign(patient="Hedwig", day=[0, 15, 33], tube=counts.index)
    return course_table(pool_tubes(results, "tube"))


def test_the_course_is_a_table_and_a_picture(sample, course, tmp_path):
    write_report(sample, tmp_path / "r.html", denominator="cd19", course=course)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    shown = said(tmp_path / "r.html")["course"]
    for value in course["shown"]:
        assert value in shown
    assert "&lt; 0.0067 %" in text
    assert re.search(
        r'alt="Residual disease over days. day 0: 40 %; day 15: .*; day 33: &lt;', text
    )
    drawn = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', text).group(1)
    picture = base64.b64decode(drawn)
    assert picture.startswith(b"<?xml")
    assert b"Hedwig" not in picture
    assert "Hedwig" not in text
    # Equal courses are drawn equally.
    write_report(sample, tmp_path / "again.html", denominator="cd19", course=course)
    assert drawn in (tmp_path / "again.html").read_text(encoding="utf-8")


def test_the_course_is_that_of_the_same_result(sample, course, tmp_path):
    def refused(match, table=course, error=InvalidInputError, **options):
        with pytest.raises(error, match=match):
            write_report(sample, tmp_path / "r.html", course=table, **options)
        assert not (tmp_path / "r.html").exists()

    here = {"denominator": "cd19"}
    refused("counts in 'cd19', the report in all analysed cells")
    refused("another protocol", protocol="eln-aml", **here)
    refused("has 400 of 1,000 cells for this sample", course.assign(tubes=NAME), **here)
    refused("no result of this sample", course.assign(tubes="another"), **here)
    other = course.rename(index={"Hedwig": "Ilse"})
    refused("of 2 patients", pd.concat([course, other]), **here)
    refused("course lacks", course.drop(columns="shown"), MissingKeyError, **here)
    refused("course lacks", course.reset_index(), MissingKeyError, **here)


def test_the_course_knows_the_errors_of_the_report(sample, course, tmp_path):
    rates = Spread(-11.0, 0.5, 20), Spread(1.5, 0.5, 20)
    for why in ("", "9 patients without positive cells; 10 of either are needed"):
        errors = ClassificationErrors(*rates, why)
        known = course_table(
            pool_tubes(course.reset_index().assign(tube=range(3)), "tube", errors=errors)
        )
        known["tubes"] = course["tubes"].to_numpy()
        here = {"denominator": "cd19", "course": known}
        write_report(sample, tmp_path / "r.html", errors=errors, **here)
        shown = said(tmp_path / "r.html")["course"]
        assert ("the thin ones know wrongly classified cells too" in shown) == (not why)
        assert (f"not estimable: {why}." if why else known["shown_total"].iloc[0]) in shown
        for other in (None, ClassificationErrors(rates[0], Spread(0.0, 0.5, 20))):
            with pytest.raises(InvalidInputError, match="course and report differ in errors="):
                write_report(sample, tmp_path / "r.html", errors=other, **here)


def test_tubes_that_differ_are_told(sample, course, tmp_path):
    apart = course.assign(n_tubes=2, tubes=f"a, {NAME}", tubes_p=[1e-9, 0.5, np.nan])
    write_report(sample, tmp_path / "r.html", denominator="cd19", course=apart)
    text = said(tmp_path / "r.html")["course"]
    assert "added, never averaged" in text
    assert "The tubes of day 0 differ by more than counting explains" in text


def test_reports_of_files_have_the_courses_of_their_patients(sample, course, tmp_path):
    folder = tmp_path / "annotated"
    folder.mkdir()
    named = {"sample": [NAME, "last"], "patient": ["Hedwig", "Ilse"], "day": [15, 33]}
    rows = course.reset_index().set_index("tubes").loc[[NAME, "last"]]
    counts = rows[["numerator", "denominator", "denominator_name"]].assign(model_sha256="a")
    counts.rename_axis("sample").to_csv(folder / "table.csv")
    pd.DataFrame(named).to_csv(tmp_path / "sheet.csv", index=False)
    sample.write_h5ad(folder / "one.h5ad")
    options = {"sheet": tmp_path / "sheet.csv", "denominator": "cd19"}
    done = report_files(folder, tmp_path / "pages", **options)
    assert done["status"].tolist() == ["done"]
    shown = said(tmp_path / "pages" / "one.html")
    assert "15" in shown["course"]
    assert "300,000" not in shown["course"]  # that of another patient
    ClassificationErrors(Spread(-11, 0.5, 20), Spread(1.5, 0.5, 20)).write(tmp_path / "errors.json")
    done = report_files(folder, tmp_path / "pages", errors=tmp_path / "errors.json", **options)
    assert done["status"].tolist() == ["done"]
    assert "know wrongly classified cells too" in said(tmp_path / "pages" / "one.html")["course"]
    with pytest.raises(InvalidInputError, match="pass sheet="):
        report_files(folder, tmp_path / "pages", pool="visit")
    # No page without the course that was asked for; a page of somebody else stays.
    pd.DataFrame({**named, "patient": [None, "Ilse"]}).to_csv(tmp_path / "sheet.csv", index=False)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    with pytest.warns(UserWarning, match="left as it is"):
        failed = report_files(folder, tmp_path / "site", **options)
    assert failed["status"].tolist() == ["failed"]
    assert "no course of" in failed["error"].item()
    assert (tmp_path / "site" / "index.html").read_text() == "mine"


# -- what it withholds --------------------------------------------------------------------------


def test_nothing_identifies_a_patient_unless_asked_for(sample, page, tmp_path):
    text = page.read_text(encoding="utf-8")
    assert "Quittenbaum" not in text
    assert "Hedwig" not in text
    write_report(sample, tmp_path / "named.html", identifiers=True)
    assert NAME in (tmp_path / "named.html").read_text(encoding="utf-8")
    assert "withheld (identifiers=True shows it)" in text
    assert "withheld" not in (tmp_path / "named.html").read_text(encoding="utf-8")


def test_a_printed_page_has_fields_to_fill_in(page, sample, tmp_path):
    fields = ("Sample", "Tube", "Denominator gate", "Reviewer, date")
    assert parsed(page).sign == dict(zip(fields, ("", "", "cd19", ""), strict=True))
    write_report(sample, tmp_path / "named.html", identifiers=True)
    named = parsed(tmp_path / "named.html").sign
    assert named == dict(zip(fields, (NAME, "", "", ""), strict=True))


def test_names_cannot_become_markup(page):
    text = page.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "&lt;|script&gt;&lt;img src=x" in text


def test_hostile_names_of_samples_gates_and_markers_are_text(tmp_path):
    raw = simulate_cohort(n_samples=1, n_cells=400, blast_fraction=0.2, random_state=0)
    raw.obs["sample"] = pd.Categorical([NASTY] * raw.n_obs)
    marker = '"><svg onload=alert(2)>'
    adata = LogicleTransform().fit_transform(raw)
    adata.var_names = [marker if name == "CD19" else name for name in adata.var_names]
    gate = "<script>alert(3)<|script>"
    gates = {"syto": ("", "Syto 41", "FSC-A"), gate: ("syto", marker, "SSC-A")}
    adata.obsm["gates"] = pd.DataFrame(
        {"syto": True, gate: adata.obsm["gates"]["cd19"]}, index=adata.obs_names
    )
    adata.uns.pop("gates", None)
    reg = PolygonRegressor(gates, sample_key="sample", **{**TINY, "max_epochs": 1})
    reg.fit(adata).annotate(adata)
    write_report(adata, tmp_path / "r.html", identifiers=True)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    for markup in ("<img src=x", "<svg onload", "<script>alert"):
        assert markup not in text
    for figure in embedded(tmp_path / "r.html")["gates"]:
        # Plotly reads titles as HTML.
        assert "<script" not in json.dumps(figure["layout"])
        assert "<svg" not in json.dumps(figure["layout"])
    assert "&lt;img src=x" in text


def test_a_hostile_name_of_the_denominator_is_text(good, tmp_path):
    hostile = good.copy()
    table = pd.DataFrame(hostile.obsm["predicted_gates_membership"])
    hostile.obsm["predicted_gates_membership"] = table.rename(columns={"cd19": NASTY})
    hostile.uns.pop("predicted_gates")
    path = tmp_path / "r.html"
    assert NASTY in review(hostile, path, denominator=NASTY)[0]
    assert NASTY in said(path)["result"]
    assert parsed(path).sign["Denominator gate"] == NASTY
    assert "<img src=x" not in path.read_text(encoding="utf-8")


def test_wide_tables_scroll_in_a_box_of_their_own(page):
    boxes = parsed(page).boxes
    assert len(boxes) > 8
    assert set(boxes) == {"scroll"}


def test_the_page_forbids_connections_and_names_no_other_file(page):
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    own = text[: text.index('<script id="data"')]
    assert not re.findall(r'(?:src|href)="(?!#|data:)', own)


# -- bad input ----------------------------------------------------------------------------------


def test_the_data_stay_as_they_were(sample, tmp_path):
    before = sample.copy()
    write_report(sample, tmp_path / "r.html")
    pd.testing.assert_frame_equal(sample.obs, before.obs)
    assert list(sample.uns) == list(before.uns)
    assert list(sample.obsm) == list(before.obsm)


def test_data_without_annotation_are_refused(sample, tmp_path):
    bare = sample.copy()
    del bare.obs["reluformer"], bare.uns["predicted_gates"]
    with pytest.raises(MissingKeyError, match=r"nothing to report.*annotate"):
        write_report(bare, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_one_of_several_samples_has_to_be_chosen(sample, tmp_path):
    two = sample.copy()
    two.obs["sample"] = pd.Categorical(np.where(np.arange(two.n_obs) < 1000, "a", "b"))
    with pytest.raises(InvalidInputError, match="one sample, and there are 2: 'a', 'b'"):
        write_report(two, tmp_path / "r.html")
    with pytest.raises(MissingKeyError, match="'c' was not found"):
        write_report(two, tmp_path / "r.html", sample="c")
    write_report(two, tmp_path / "r.html", sample="a")
    assert "1,000" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_an_unknown_denominator_is_refused(sample, tmp_path):
    with pytest.raises(MissingKeyError, match="denominator='cd3' is not among the gates"):
        write_report(sample, tmp_path / "r.html", denominator="cd3")


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000])
def test_a_damaged_record_is_an_error_in_words(sample, tmp_path, text):
    damaged = sample.copy()
    damaged.uns["reluformer"] = {**damaged.uns["reluformer"], "cards": text}
    with pytest.raises(InvalidInputError, match="run record's 'cards'"):
        write_report(damaged, tmp_path / "r.html")


@pytest.mark.parametrize(
    "record", ["text", {"distance": {"sample": [1]}}, {"distance": "far"}, {"params": "no"}]
)
def test_a_record_of_another_kind_is_an_error_in_words(sample, tmp_path, record):
    damaged = sample.copy()
    damaged.uns["reluformer"] = record
    with pytest.raises(InvalidInputError, match=r"Annotate (it|the file) again"):
        write_report(damaged, tmp_path / "r.html")


def test_a_gating_model_alone_is_reported(sample, tmp_path):
    alone = sample.copy()
    del alone.obs["reluformer"], alone.uns["reluformer"], alone.obsm["reluformer_proba"]
    write_report(alone, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert '<section id="mrd">' not in text
    assert len(embedded(tmp_path / "r.html")["gates"]) == 2


def test_models_without_a_sample_key_are_reported(sample, tmp_path):
    adata = sample.copy()
    ReluFormerClassifier(label_key="cell_type", pos_label="blast", n_members=0, **TINY).fit(
        adata
    ).annotate(adata)
    PolygonRegressor(GATES, **TINY).fit(adata).annotate(adata)
    adata.obs = adata.obs.drop(columns="sample")
    write_report(adata, tmp_path / "r.html")
    assert len(embedded(tmp_path / "r.html")["gates"]) == 2
    assert '<section id="distance">' in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_gates_drawn_in_another_state_give_way_to_hulls(sample, tmp_path):
    adata = sample.copy()
    del adata.uns["predicted_gates"]
    adata.var["compensated"] = False
    write_report(adata, tmp_path / "r.html")
    names = [{t.get("name") for t in g["data"]} for g in embedded(tmp_path / "r.html")["gates"]]
    # Scatter is never compensated, so gates on scatter alone stay as they were drawn.
    assert any("hull of the expert's cells" in found for found in names)
    assert all(len(found & {"expert", "hull of the expert's cells"}) <= 1 for found in names)


def test_a_classifier_alone_is_reported(sample, tmp_path):
    alone = sample.copy()
    for table in (alone.obsm, alone.layers, alone.uns):
        for key in list(table):
            if key not in ("reluformer", "reluformer_proba", None):  # AnnData 0.13: None is X
                del table[key]
    alone.obs = alone.obs[["sample", "reluformer"]]
    alone.var = alone.var[[]]
    write_report(alone, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert '<section id="mrd">' in text
    assert '<section id="gates">' not in text
    assert "Not judged" in text


@pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning")
def test_pages_of_many_files_fail_one_by_one(sample, tmp_path):
    two = sample.copy()
    two.obs["sample"] = pd.Categorical(np.where(np.arange(two.n_obs) < 1000, "a/b", "../c"))
    folder = tmp_path / "files"
    folder.mkdir()
    sample.write_h5ad(folder / "one.h5ad")
    two.write_zarr(folder / "two.zarr")
    (folder / "broken.h5ad").write_bytes(b"nothing")
    table = report_files(folder, tmp_path / "pages")
    assert table["status"].tolist() == ["failed", "done", "done", "done"]
    assert sorted(p.name for p in (tmp_path / "pages").iterdir()) == [
        "index.html",
        "one.html",
        "two-1.html",
        "two-2.html",
    ]
    index = (tmp_path / "pages" / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<a href="(.*?)">', index) == ["one.html", "two-1.html", "two-2.html"]
    assert "no report: " in index
    assert "a/b" not in index
    report_files(folder, tmp_path / "named", identifiers=True)
    assert "<td>a/b</td>" in (tmp_path / "named" / "index.html").read_text(encoding="utf-8")
    with pytest.raises(InvalidInputError, match="3 files do not fit on one page"):
        report_files(folder, tmp_path / "page.html")
    # A further call keeps the pages of the first in the index, and the names where they are known.
    (folder / "two.zarr").rename(tmp_path / "two.zarr")
    for name in ("one", "two"):
        (folder / f"{name}.h5ad").write_bytes(b"nothing")
    (tmp_path / "named" / "mine.html").write_text("<title>Reports of cytometry samples</title>")
    report_files(folder, tmp_path / "named", identifiers=True)
    index = (tmp_path / "named" / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<a href="(.*?)">', index) == ["one.html", "two-1.html", "two-2.html"]
    assert "<td>a/b</td>" in index
    assert index.count("<td>of an earlier call; now: ") == 3
    assert index.count("no report: ") == 1  # that of broken.h5ad
    report_files(tmp_path / "two.zarr", tmp_path / "named")
    index = (tmp_path / "named" / "index.html").read_text(encoding="utf-8")
    assert index.count("<a href=") == 3
    assert "a/b" not in index
    assert "no report" not in index


def test_without_a_place_one_sample_is_a_page_and_several_are_a_directory(
    sample, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    two = sample.copy()
    two.obs["sample"] = pd.Categorical(np.where(np.arange(two.n_obs) < 1000, "a", "b"))
    two.write_h5ad("two.h5ad")
    sample.write_h5ad("index.h5ad")
    assert report_files("index.h5ad")["output"].tolist() == ["report.html"]
    assert report_files("two.h5ad", sample="a")["output"].tolist() == ["report.html"]
    pages = [str(Path("reports", name)) for name in ("two-1.html", "two-2.html")]
    assert report_files("two.h5ad")["output"].tolist() == pages
    assert Path("reports/index.html").exists()
    # The page of a file is not replaced by the list of pages.
    report_files("index.h5ad", "other")
    assert "plotly" in Path("other/index.html").read_text(encoding="utf-8")
    with pytest.warns(UserWarning, match="no index of reports and was left as it is"):
        report_files("two.h5ad", "other")
    assert "plotly" in Path("other/index.html").read_text(encoding="utf-8")


# -- in a browser -------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium: as root on Debian, `make browser` installs it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, page):
    """The page, with its requests and the errors on its console."""
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    tab.requested, tab.errors = [], []
    tab.on("request", lambda request: tab.requested.append(request.url))
    tab.on("pageerror", lambda error: tab.errors.append(str(error)))
    tab.on("console", lambda m: tab.errors.append(m.text) if m.type == "error" else None)
    tab.goto(page.as_uri())
    tab.wait_for_selector("html[data-complete]", timeout=60_000, state="attached")
    yield tab
    tab.close()


def drawn(tab):
    """Traces of the picture of cells: name, number of points, one colour or many, kind."""
    return tab.evaluate(
        "document.getElementById('plot').data.map((t) => "
        "[t.name, t.x.length, t.marker ? typeof t.marker.color : null, t.type])"
    )


def test_it_opens_without_errors_and_without_requests(opened, page, sample):
    assert opened.errors == []
    assert opened.requested == [page.as_uri()]
    assert sum(n for _, n, _, kind in drawn(opened) if kind == "scattergl") == sample.n_obs


def test_the_number_on_the_screen_is_the_right_one(opened, sample):
    inside = sample.obsm["gates"]["cd19"].to_numpy()
    blasts = (sample.obs["reluformer"] == "blast").to_numpy()
    fraction = (blasts & inside).sum() / inside.sum()
    assert opened.inner_text("#mrd-value") == f"{100 * fraction:.3g} %"


def test_colours_switch(opened, sample):
    assert {name for name, *_ in drawn(opened)} >= {"blast"}
    opened.select_option("#colour", label="length of the gradient")
    [(name, n, colour, _)] = drawn(opened)
    assert (name, n) == ("length of the gradient", sample.n_obs)
    assert colour == "object"  # a number for each cell
    opened.select_option("#colour", label="head that looks most")
    heads = {name for name, *_ in drawn(opened)}
    assert heads == set(sample.obs["attention_head"].cat.remove_unused_categories().cat.categories)
    assert opened.errors == []


def test_a_class_can_be_hidden_from_the_keyboard(opened, sample):
    opened.get_by_role("checkbox", name=re.compile("^blast")).focus()
    opened.keyboard.press("Space")
    counts = sample.obs["reluformer"].value_counts()
    assert "blast" not in {name for name, *_ in drawn(opened)}
    assert sum(n for _, n, *_ in drawn(opened)) == sample.n_obs - counts["blast"]


def test_views_show_gates_on_their_planes(opened):
    opened.select_option("#view", label="gate cd19")
    names = {name for name, _, _, kind in drawn(opened) if kind == "scatter"}
    assert "predicted" in names
    assert len(names) == 2
    assert opened.eval_on_selector("#x", "e => e.selectedOptions[0].text") == "CD19"
    assert opened.evaluate("document.querySelectorAll('.figure .plot-container').length") == 7


def test_markers_can_be_chosen_and_zoomed_from_the_keyboard(opened):
    opened.focus("#x")
    opened.keyboard.type("CD34")
    assert opened.eval_on_selector("#x", "e => e.selectedOptions[0].text") == "CD34"
    ranges = "(() => { const l = document.getElementById('plot').layout; return l.xaxis.range; })()"
    before = opened.evaluate(ranges)
    opened.focus("#closer")
    opened.keyboard.press("Enter")
    after = opened.evaluate(ranges)
    assert after[1] - after[0] == pytest.approx(0.7 * (before[1] - before[0]))
    assert "CD34" in opened.inner_text("#seen")


def test_a_cell_tells_its_values_in_raw_units(opened, sample):
    opened.select_option("#view", label="UMAP")
    opened.evaluate(
        "document.getElementById('plot').emit('plotly_hover', {points: [{fullData: {type: "
        "'scattergl'}, customdata: 7}]})"
    )
    text = opened.inner_text("#cell")
    assert str(sample.obs["event"].iloc[7]) in text
    shown = re.search(r"CD10\s+(\S+)", text).group(1)
    scale = parse_transform(str(sample.var.loc["CD10", "transform"]))
    raw = scale.inverse(np.asarray(sample[7, "CD10"].X, dtype=float).ravel())[0]
    assert float(shown) == pytest.approx(raw, rel=0.02, abs=5)


def test_it_prints(opened):
    pdf = opened.pdf(format="A4", print_background=True)
    assert pdf.startswith(b"%PDF")
    assert opened.evaluate("[...document.querySelectorAll('details')].every((d) => d.open)")
    opened.emulate_media(media="print")
    assert not opened.is_visible(".buttons")
    assert opened.is_visible("#mrd-value")


def test_result_and_pictures_take_a_page_each(browser, sample, course, tmp_path):
    path = tmp_path / "r.html"
    write_report(sample, path, denominator="cd19", course=course)
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(path.as_uri())
    tab.wait_for_selector("html[data-complete]", timeout=60_000, state="attached")
    tab.evaluate(
        "document.querySelectorAll('#positive ~ *, footer').forEach((element) => element.remove())"
    )
    pdf = tab.pdf(format="A4", print_background=True, prefer_css_page_size=True)
    assert len(re.findall(rb"/Type /Page\b", pdf)) == 2
    tab.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(browser, sample, course, tmp_path, width):
    path = tmp_path / "r.html"
    write_report(sample, path, denominator="cd19", course=course)
    tab = browser.new_page(viewport={"width": width, "height": 900})
    tab.goto(path.as_uri())
    tab.wait_for_selector("html[data-complete]", timeout=60_000, state="attached")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    tab.close()
