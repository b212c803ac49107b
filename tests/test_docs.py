"""The documentation says what is there, and its first page works as it stands."""

from __future__ import annotations

import ast
import importlib
import json
import re
import warnings
from pathlib import Path

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pytest
import typer

from fcm_estimators import exceptions
from fcm_estimators.cli import app

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [p for p in DOCS.rglob("*.md") if "_build" not in p.parts]
MODULES = [
    "explainers",
    "explainers.faithfulness",
    "explainers.plotting",
    "fcm_estimators",
    "fcm_estimators.cohort",
    "fcm_estimators.colours",
    "fcm_estimators.datasets",
    "fcm_estimators.exceptions",
    "fcm_estimators.gating",
    "fcm_estimators.inference",
    "fcm_estimators.io",
    "fcm_estimators.keys",
    "fcm_estimators.labels",
    "fcm_estimators.metrics",
    "fcm_estimators.models",
    "fcm_estimators.nn",
    "fcm_estimators.preprocessing",
    "fcm_estimators.quality",
    "fcm_estimators.report",
    "fcm_estimators.workflow",
]


def listed_objects():
    """Names in the API reference, by module."""
    found: dict[str, set[str]] = {}
    module = ""
    for line in (DOCS / "api.md").read_text(encoding="utf-8").splitlines():
        if line.startswith(".. currentmodule::"):
            module = line.split()[-1]
        elif name := re.fullmatch(r"   (\w+)", line):
            found.setdefault(module, set()).add(name.group(1))
    return found


@pytest.mark.parametrize("name", MODULES)
def test_the_reference_lists_every_public_object(name):
    everywhere = set().union(*listed_objects().values())
    public = {n for n in importlib.import_module(name).__all__ if not n.startswith("__")}
    modules = {m.rsplit(".", 1)[-1] for m in MODULES}
    assert public - modules <= everywhere


def test_the_reference_lists_nothing_else():
    for module, names in listed_objects().items():
        assert all(hasattr(importlib.import_module(module), name) for name in names)
    errors = {
        n for n, e in vars(exceptions).items() if n.endswith("Error") and not n.startswith("_")
    }
    assert errors <= listed_objects()["fcm_estimators.exceptions"] | {"FcmError"}


def test_the_architecture_names_what_there_is():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    package, tests = DOCS.parent / "fcm_estimators", DOCS.parent / "tests"
    table = text[text.index("## I want to change") :]
    rows = [line.split("|")[1:4] for line in table.splitlines() if line.startswith("| ")][1:]
    for _, code, checks in rows:
        for name in re.findall(r"`([\w/]+)`", code):
            path = DOCS.parent / name if name.startswith("explainers") else package / name
            private = name.startswith("_") and "/" not in name
            assert private or path.with_suffix(".py").exists() or path.is_dir(), name
        for name in re.findall(r"`([\w/]+)`", checks):
            assert (tests / f"{name}.py").exists(), name


def test_every_page_is_reachable():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    entries = re.findall(r"^([\w/-]+)$", index, flags=re.MULTILINE)
    assert {p.relative_to(DOCS).with_suffix("").as_posix() for p in PAGES} == {*entries, "index"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_and_pictures_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def texts_of_the_code():
    """Every string of the packages; what is filled in is "...".

    A line end keeps the strings apart.
    """
    for package in ("fcm_estimators", "explainers"):
        for path in (DOCS.parent / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [v.value if isinstance(v, ast.Constant) else "..." for v in node.values]
                    yield "".join(map(str, parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_the_messages_that_the_questions_name_are_those_of_the_code():
    page = (DOCS / "faq.md").read_text(encoding="utf-8")
    bold = " ".join(" ".join(re.findall(r"\*\*(.*?)\*\*", page, re.DOTALL)).split())
    named = re.findall(r'"([^"`]+)"', bold)
    pieces = {p.strip(" '.") for m in named for p in re.split(r"\.\.\.| unable to lock", m)}
    pieces = {p for p in pieces if len(p) > 8}
    texts = "\n".join(texts_of_the_code())
    assert len(pieces) > 15
    assert {p for p in pieces if p not in texts} == set()


@pytest.mark.parametrize("page", ["README.md", "docs/cheatsheet.md", "docs/faq.md"])
def test_commands_and_options_are_there(page):
    commands = typer.main.get_command(app).commands
    text = (DOCS.parent / page).read_text(encoding="utf-8")
    for line in re.findall(r"^fcm .*$", text, flags=re.MULTILINE):
        name, *rest = line.partition("#")[0].split()[1:]
        options = {o for p in commands[name].params for o in (*p.opts, *p.secondary_opts)}
        assert {word for word in rest if word.startswith("-")} <= options, line
    # Rows of the sheet: `--option`, ... | commands or "all but ..." | what it does
    for row in re.findall(r"^\| (`-.*?) \| (.*?) \|", text, flags=re.MULTILINE):
        names = set(row[1].removeprefix("all but ").split(", "))
        names = commands.keys() - names if row[1].startswith("all but ") else names
        for name in names:
            options = {o for p in commands[name].params for o in (*p.opts, *p.secondary_opts)}
            assert set(re.findall(r"`(--?[\w-]+)", row[0])) <= options, (row, name)


def blocks_of(page):
    """The code of a page, block after block."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_python_on_the_pages_is_python():
    for page in PAGES:
        if page.parent.name == "tutorials":
            continue  # run when the site is built
        for block in blocks_of(page.relative_to(DOCS)):
            compile(block, page.name, "exec")


def test_the_page_on_the_paper_runs_as_it_stands(training, capsys):
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what UMAP and scanpy warn of is theirs
        for block in blocks_of("paper.md"):
            exec(compile(block, "paper.md", "exec"), names)
    plt.close("all")
    sample, shown, matrix = names["sample"], names["shown"], names["matrix"]
    assert {"attention_head", "mean", "influence", "edge_norm", "size_norm"} <= set(sample.obs)
    received = shown.obsm["attention_layer0"].to_numpy().T
    inside = ~np.isnan(received[0])
    given = matrix[:, inside][:, :, inside].mean(1)
    # The subset is all that the model reads, so the matrix is that of the whole sample.
    np.testing.assert_allclose(given / given.mean(1, keepdims=True), received[:, inside], rtol=1e-3)
    assert names["row"].shape == (4, 1, sample.n_obs)
    assert len(names["pairs"][0]) == len(names["outline"])
    distance = float(re.search(r"^matched distance (\S+)", capsys.readouterr().out).group(1))
    assert np.isfinite(distance)


def test_the_page_on_own_nets_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # members of so short a training may not agree
        for block in blocks_of("howto/own-net.md"):
            exec(compile(block, "own-net.md", "exec"), names)
    adata = names["adata"]
    assert {"reluformer", "gradient_norm", "influence"} <= set(adata.obs)
    assert names["clf"].score(adata) > 0.9
    assert capsys.readouterr().out.count("\n") == 5


def test_the_page_on_scanpy_and_scikit_learn_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what UMAP and scanpy warn of is theirs
        for block in blocks_of("howto/ecosystem.md"):
            exec(compile(block, "ecosystem.md", "exec"), names)
    plt.close("all")
    assert set(names["cells"].var_names) == set(names["clf"].markers_)
    printed = dict(re.findall(r"^(alone|isotonic|stack) (\S+)$", capsys.readouterr().out, re.M))
    assert float(printed["alone"]) < 0.05
    assert float(printed["isotonic"]) < 0.05
    assert float(printed["stack"]) > 0.95
    for name in ("gradients.png", "umap.png"):
        assert (tmp_path / name).stat().st_size > 5_000


@pytest.mark.real_data
def test_start_page_runs_as_it_stands(training, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what UMAP and scanpy warn of is theirs
        for block in blocks_of("start.md"):
            exec(compile(block, "start.md", "exec"), names)
    printed = capsys.readouterr().out
    f1 = float(re.search(r"^f1\s+(\S+)", printed, re.MULTILINE).group(1))
    assert f1 > (0.99 if training == "whole" else -1)
    assert "quantifiable" in printed
    assert (tmp_path / "umap.png").stat().st_size > 50_000
    assert "Residual disease" in (tmp_path / "report.html").read_text(encoding="utf-8")
    back = anndata.read_h5ad(tmp_path / "sample.h5ad")
    assert {"reluformer", "attention_head", "gradient_norm"} <= set(back.obs)
    assert "Model card" in json.loads(back.uns["reluformer"]["cards"])
