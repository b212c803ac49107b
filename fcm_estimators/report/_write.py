"""Write the page of one sample."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators._files import write_whole
from fcm_estimators._types import Entries
from fcm_estimators._version import __version__
from fcm_estimators.colours import known_colours
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.keys import EXPERT_GATES, AttentionKeys, ClassKeys, GateKeys, GradientKeys
from fcm_estimators.metrics import DEFAULT_PROTOCOL, ClassificationErrors, Protocol
from fcm_estimators.report import _cells, _figures, _sentences, _tables
from fcm_estimators.report._course import course_of
from fcm_estimators.report._positive import positive_cells
from fcm_estimators.report._sample import Annotated, Keys, one_sample

# What tells a report from another page.
GENERATOR = "fcm-estimators report"
# Number of cells of a UMAP that is computed for the report.
_EMBEDDED = 10_000


def write_report(
    adata: AnnData,
    path: str | os.PathLike[str],
    *,
    sample: str | None = None,
    key: str = ClassKeys.key,
    gates_key: str = GateKeys.key,
    expert_gates_key: str = EXPERT_GATES,
    gradient_key: str = GradientKeys.key,
    attention_key: str = AttentionKeys.key,
    denominator: str | None = None,
    limit_of_blank: float | None = None,
    protocol: Protocol | str | os.PathLike[str] = DEFAULT_PROTOCOL,
    errors: ClassificationErrors | str | os.PathLike[str] | None = None,
    course: pd.DataFrame | None = None,
    umap: bool = False,
    max_cells: int = 100_000,
    identifiers: bool = False,
    identifiers_option: str = "identifiers=True",
) -> None:
    """Write the results of a sample and their explanations as one HTML page.

    The page begins with the residual disease in a sentence, and with what speaks against it: many
    unknown cells, markers far from training, few held-out patients, a missing denominator and the
    like. Then follow a picture of the cells whose axes and colours can be chosen, the positive
    cells over those of the same sample that resemble them most, predicted gates beside the
    expert's, what the model looked at, the tables (residual disease, cells by class, quality
    control, distance from the training samples) and the model card. It is complete: it
    loads nothing, and its content security policy forbids loading.

    Parameters
    ----------
    adata : AnnData
        Annotated by a classifier, a gating model, or both; explanations are shown if they are in
        the data. Not changed.
    path : path
        Page to write; an existing file is replaced.
    sample : str, optional
        Sample to report, needed if there are several.
    key : str, default "reluformer"
        ``key_added`` of the classifier.
    gates_key : str, default "predicted_gates"
        ``key_added`` of the gating model.
    expert_gates_key : str, default "gates"
        Key of the expert's gates, the ``label_key`` of the gating model.
    gradient_key, attention_key : str, default "gradient" and "attention"
        ``key_added`` of the explainers.
    denominator : str, optional
        Gate, the expert's or a predicted one, to which the fraction of positive cells refers.
        Default: all cells that the model analysed.
    limit_of_blank : float, optional
        Fraction found in samples without disease (:func:`fcm_estimators.metrics.limit_of_blank`).
    protocol : Protocol, str or path, default "20/50 events"
        Limits by which the counts are read, or what
        :meth:`Protocol.read <fcm_estimators.metrics.Protocol.read>` reads.
    errors : ClassificationErrors or path, optional
        How the model errs in unseen patients with the same denominator, for an interval that knows
        it.
    course : DataFrame, optional
        Course of the sample's patient over days, as
        :func:`~fcm_estimators.cohort.course_of_tables` returns it, with the same denominator,
        protocol and errors. It is shown as a table and a picture.
    umap : bool, default False
        Compute a UMAP of at most 10,000 cells on the model's markers if the data have none.
    max_cells : int, default 100,000
        Largest number of cells in the picture. Of larger samples, the positive cells (up to half of
        the picture) and a random part of the other cells are drawn. With many columns the number
        is smaller, so that the page stays below 15 MB. All tables count all cells.
    identifiers : bool, default False
        Whether the page shows the name of the sample, which often identifies a patient.
    identifiers_option : str, default "identifiers=True"
        How the page says what shows the name, if it does not.

    Raises
    ------
    InvalidInputError
        ``adata`` is not an AnnData or has no cells, there are several samples and none is chosen,
        ``max_cells`` is below 1, there is no such protocol, the errors are those of
        another model, a run record is damaged, or the course is of several patients, of another
        denominator, protocol or errors, or lacks this sample or has other counts of it.
    MissingKeyError
        A model has not annotated the data, the sample or the gate is not there, or the course
        lacks a column.

    Examples
    --------
    >>> from fcm_estimators import ReluFormerClassifier
    >>> from fcm_estimators.datasets import simulate_cohort
    >>> from fcm_estimators.preprocessing import LogicleTransform
    >>> from fcm_estimators.report import write_report
    >>> raw = simulate_cohort(n_samples=1, n_cells=300, random_state=0)
    >>> adata = LogicleTransform().fit_transform(raw)
    >>> clf = ReluFormerClassifier(label_key="cell_type", pos_label="blast", max_epochs=1)
    >>> clf.fit(adata).annotate(adata)
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = pathlib.Path(folder, "report.html")
    ...     write_report(adata, page)
    ...     "Residual disease" in page.read_text(encoding="utf-8")
    True
    """
    if max_cells < 1:
        raise InvalidInputError(f"max_cells={max_cells} must be 1 or more.")
    if not isinstance(protocol, Protocol):
        protocol = Protocol.read(protocol)
    if isinstance(errors, str | os.PathLike):
        errors = ClassificationErrors.read(errors)
    keys = Keys(
        ClassKeys(key),
        GateKeys(gates_key),
        expert_gates_key,
        GradientKeys(gradient_key),
        AttentionKeys(attention_key),
    )
    found = one_sample(adata, sample, keys)
    if umap and "X_umap" not in found.adata.obsm:
        _add_umap(found)
    residual = _tables.residual_disease(found, denominator, limit_of_blank, protocol, errors)
    mrd = None if residual is None else residual.entries
    planes = _figures.planes(found)
    data, note = _picture(found, planes, max_cells)
    data["gates"] = [_figures.gate_figure(found, plane) for plane in planes]
    positive = None if residual is None else positive_cells(found, residual, planes)
    days = None if course is None else course_of(found, course, residual, protocol, errors)
    data["positive"] = [] if positive is None else positive.figures
    data["why"], why, why_tables = _why(found)
    tables = [_tables.class_counts(found), _tables.quality(found), _tables.distances(found)]
    shown = [table for table in tables if table is not None]
    gate_table = _tables.agreement(found)
    cards = _tables.model_cards(found)
    sections = [
        *([("course", "Course")] if days else []),
        ("cells", "Cells"),
        *([("positive", "Positive cells")] if positive else []),
        *([("gates", "Gates")] if planes or gate_table else []),
        *([("why", "What the model looked at")] if why else []),
        *([("mrd", "Residual disease")] if mrd else []),
        *((table.name, table.title) for table in shown),
        *([("model", "Model and training data")] if cards else []),
    ]
    page = template().render(
        title="Report of a cytometry sample",
        generator=GENERATOR,
        result="" if residual is None else residual.words,
        review=_sentences.review(found, residual),
        facts=_facts(
            found, found.name if identifiers else f"withheld ({identifiers_option} shows it)"
        ),
        sign={
            "Sample": found.name if identifiers else "",
            "Tube": "",
            "Denominator gate": denominator or "",
            "Reviewer, date": "",
        },
        sections=sections,
        mrd=mrd,
        total=residual is not None and residual.total is not None,
        tables=shown,
        cells_note=note,
        positive=positive,
        course=days,
        gates=[plane["gate"] for plane in planes],
        gate_table=gate_table,
        why=why,
        responds=_sentences.responds_most(found),
        why_tables=why_tables,
        cards=cards,
        version=__version__,
        css=resource("page.css"),
        script=resource("page.js"),
        plotly=_plotly(),
        # Without "<", names of markers or classes cannot end the script element.
        data=json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
    )
    write_whole(Path(path), page.encode("utf-8"))


def _facts(sample: Annotated, name: str) -> dict[str, str]:
    run = sample.run
    return {
        "sample": name,
        "events": f"{sample.adata.n_obs:,}",
        "analysed": f"{int(sample.analysed.sum()):,}",
        "markers read": ", ".join(sample.markers),
        "annotated by": f"fcm-estimators {run.get('version', 'of unknown version')}",
    }


def _picture(sample: Annotated, planes: list[Entries], max_cells: int) -> tuple[Entries, str]:
    """Columns and views of the picture of cells, and a note on which cells are drawn."""
    everything = list(_cells.columns(sample))
    rows = _cells.chosen_cells(sample, everything, max_cells)
    known = known_colours(sample.adata, sample.keys.classes.label)
    columns = [_cells.packed(*column, rows, known) for column in everything]
    for column in columns:
        if column["group"] == "Markers":
            column |= _cells.axis_of(sample, column["name"], column["low"], column["high"])
    position = {(c["group"], c["name"]): i for i, c in enumerate(columns)}
    views: list[Entries] = []
    for group, name in position:
        if group == "Embedding" and name.endswith(" 1"):
            base = name.removesuffix(" 1")
            x, y = position[group, name], position[group, f"{base} 2"]
            views.append({"name": base, "x": x, "y": y})
    for plane in planes:
        lines = [
            {
                "name": name,
                "x": [*outline[:, 0].tolist(), float(outline[0, 0])],
                "y": [*outline[:, 1].tolist(), float(outline[0, 1])],
                **_figures.line_of(name),
            }
            for name, outline in plane["outlines"].items()
        ]
        x, y = (position["Markers", plane[axis]] for axis in "xy")
        views.append({"name": f"gate {plane['gate']}", "x": x, "y": y, "outlines": lines})
    markers = [position["Markers", name] for name in _cells.separating_markers(sample)]
    colours = [i for (group, _), i in position.items() if group in ("Cells", "Gates")]
    n_drawn, n_cells = len(rows), sample.adata.n_obs
    note = f"All {n_cells:,} cells are drawn."
    if n_drawn < n_cells:
        positive = "every positive cell (up to half) and " if sample.positive_class else ""
        note = (
            f"{n_drawn:,} of {n_cells:,} cells are drawn: {positive}a random part of the others. "
            "The tables count all cells."
        )
    data = {
        "columns": columns,
        "views": views,
        "axes": [markers[0], markers[min(1, len(markers) - 1)]],
        "colour": colours[0] if colours else markers[0],
        "point_size": float(np.clip(900 / np.sqrt(n_drawn + 1), 2, 6).round(1)),
    }
    if "event" in sample.adata.obs:
        data["events"] = sample.adata.obs["event"].to_numpy()[rows].tolist()
    return data, note


def _why(sample: Annotated) -> tuple[list[Entries], list[str], list[_tables.Table]]:
    """Figures of explanations, their descriptions and their tables."""
    figures, names, tables = [], [], []
    summary = _tables.gradients(sample)
    if summary is not None:
        run = sample.record(sample.keys.gradient.record)
        explained = str(run.get("explained", "the output"))
        unit = "per SD" if run.get("units") == "sd" else "per unit"
        figures.append(_figures.gradient_figure(summary, explained, unit))
        names.append(f"Mean gradient of {explained} by class and marker")
        tables.append(_tables.gradient_table(summary, unit))
    received = _tables.attention(sample)
    if received is not None:
        figures.append(_figures.attention_figure(received))
        names.append("Received attention by class and head")
        tables.append(_tables.attention_table(received))
    return figures, names, tables


def _add_umap(sample: Annotated) -> None:
    """Compute a UMAP of some cells on the model's markers, each scaled to unit variance."""
    import scanpy as sc

    adata = sample.adata
    rows = np.flatnonzero(sample.analysed)
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:_EMBEDDED])
    if len(rows) < 3 or not sample.markers:
        return
    part = AnnData(np.array(adata[rows, sample.markers].X, dtype=np.float32))
    sc.pp.scale(part)
    sc.pp.neighbors(part, n_neighbors=15, use_rep="X", random_state=0)
    sc.tl.umap(part, random_state=0)
    embedding = np.full((adata.n_obs, 2), np.nan, dtype=np.float32)
    embedding[rows] = part.obsm["X_umap"]
    adata.obsm["X_umap"] = embedding


def resource(name: str) -> str:
    return resources.files("fcm_estimators.report").joinpath(name).read_text(encoding="utf-8")


def template(name: str = "page.html.j2") -> Any:
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(resource(name))


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
