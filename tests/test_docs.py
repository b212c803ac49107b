"""The documentation says what is there, and its first page works as it stands."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import shutil
import warnings
from pathlib import Path

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from fcm_estimators import datasets, exceptions
from fcm_estimators.cli import app
from fcm_estimators.datasets import simulate_cohort
from tests import workspaces

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


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/cheatsheet.md",
        "docs/faq.md",
        "docs/howto/report.md",
        "docs/howto/tube-to-report.md",
    ],
)
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
    nets = "\n\n".join(blocks_of("howto/own-net.md")[:2])
    whole = (DOCS.parent / "benchmarks" / "nets.py").read_text(encoding="utf-8")
    assert nets.split() == whole[whole.index("from itertools") :].split()
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # members of so short a training may not agree
        for block in blocks_of("howto/own-net.md"):
            exec(compile(block, "own-net.md", "exec"), names)
    adata = names["adata"]
    assert {"reluformer", "gradient_norm", "influence"} <= set(adata.obs)
    assert names["clf"].score(adata) > 0.9
    assert capsys.readouterr().out.count("\n") == 5


def test_the_page_from_tube_to_report_runs_as_it_stands(training, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if training == "short":
        few = {96: 16, 80: 80, 4: 4}
        monkeypatch.setattr(
            datasets,
            "simulate_cohort",
            lambda n, n_cells, **options: simulate_cohort(few[n], 1_000, **options),
        )
    text = (DOCS / "howto" / "tube-to-report.md").read_text(encoding="utf-8")
    parts = re.findall(r"```(python|sh|text)\n(.*?)```", text, flags=re.DOTALL)
    printed, compared = "", 0
    for kind, block in parts:
        if kind == "python":
            exec(compile(block, "tube-to-report.md", "exec"), {})
        elif kind == "sh":
            [command] = block.replace("\\\n", " ").splitlines()
            done = CliRunner().invoke(app, shlex.split(command)[1:])
            assert done.exit_code == 0, done.output
            printed, compared = done.output, compared + 1
        elif printed:
            # The head of a table, or the name of the first entry.
            first = [
                re.split(r"\s{2,}", t.strip("\n ").split("\n")[0])[0] for t in (block, printed)
            ]
            assert first[0] == first[1]
    assert compared == 6
    days = (0, 15, 33, 78)
    pages = [*(f"anna_day{day}.html" for day in days), "anna_day33_tube2.html", "index.html"]
    assert sorted(p.name for p in (tmp_path / "reports").iterdir()) == sorted(pages)
    assert 'class="course"' in (tmp_path / "reports" / pages[0]).read_text(encoding="utf-8")
    course = pd.read_csv(tmp_path / "course" / "course.csv")
    assert course["day"].tolist() == list(days)
    assert course["n_tubes"].tolist() == [1, 1, 2, 1]
    if training == "whole":
        # What the page tells: much at diagnosis, less on day 15, nothing on day 78.
        fraction = course["fraction"].to_numpy()
        assert fraction[0] > 0.5
        assert 0.01 < fraction[1] < 0.05
        assert course["detection"].iloc[3] in ("below LOD", "within blank", "members disagree")


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore")  # a channel without a marker, and what FlowKit warns of
def test_the_tutorial_on_a_workspace_runs_as_it_stands(training, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks_of("tutorials/workspace.md"):
        exec(compile(block, "workspace.md", "exec"), names)
    plt.close("all")
    text = (DOCS / "tutorials" / "workspace.md").read_text(encoding="utf-8")
    shown = re.findall(r"```text\n(.*?)```", text, flags=re.DOTALL)
    printed = capsys.readouterr().out
    # What depends on no training is there letter by letter.
    for part in (*shown[:2], shown[-1]):
        assert part in printed
    scores = pd.DataFrame(names["f1"])
    assert list(scores.index) == list(names["planes"])
    if training == "whole":
        assert (scores["predicted"] > scores["fixed"]).all()
        assert (scores["predicted"] > 0.985).all()
    taught = names["trees"]["tube4"].apply(names["raw"])
    pd.testing.assert_frame_equal(taught, names["before"])


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


TRIANGLE = [[300, -200], [30000, 300], [30000, 30000], [300, 5000]]


@pytest.fixture
def laboratory(tmp_path, monkeypatch):
    """Files and a workspace as the pages name them."""
    monkeypatch.chdir(tmp_path)
    scales = {c: "biex" for d in ("FITC-A", "PE-A") for c in (d, f"Comp-{d}")}
    samples = []
    for name in ("fcs/tube1", "fcs/tube2", "fcs/tube3", "other/tube4", "new/tube5"):
        path = tmp_path / f"{name}.fcs"
        path.parent.mkdir(exist_ok=True)
        number = len(samples) + 1
        workspaces.write_file(path, seed=number, n=2000)
        gates = [
            workspaces.population(
                parent,
                workspaces.outline("FSC-A", "SSC-A", [[low, low], [3e5, low], [3e5, 3e5]]),
                workspaces.population(
                    below, workspaces.outline("Comp-FITC-A", "Comp-PE-A", TRIANGLE)
                ),
            )
            for parent, below, low in (
                ("Intact cells", "Blasts", 20000),
                ("Lymphocytes", "T cells", 40000),
            )
        ]
        samples.append(workspaces.sample(path.name, *gates, number=number, scales=scales))
    workspaces.write_workspace(tmp_path / "lab.wsp", *samples)
    return tmp_path


short = pytest.mark.parametrize("training", ["short"], indirect=True)


def commands_of(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    joined = "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL))
    return [shlex.split(line)[1:] for line in joined.splitlines() if line.startswith("fcm ")]


@short
@pytest.mark.filterwarnings("ignore")  # so short a training warns of much
def test_the_page_on_gates_from_flowjo_runs_as_it_stands(training, laboratory, capsys):
    commands = commands_of("howto/flowjo.md")
    assert len(commands) == 7
    for command in commands:
        done = CliRunner().invoke(app, [*command, "--workers", "0"])
        assert done.exit_code == 0, (command, done.output)
    names: dict[str, object] = {}
    for block in blocks_of("howto/flowjo.md"):
        exec(compile(block, "flowjo.md", "exec"), names)
    inside = names["adata"].obsm["gates"].sum()
    assert f"Blasts          {inside['Blasts']}" in capsys.readouterr().out
    assert (names["adata"].obs["cell_type"] == "blast").sum() == inside["Blasts"] > 100
    assert {p.suffix for p in (laboratory / "annotated").iterdir()} >= {".h5ad", ".csv"}


@short
@pytest.mark.filterwarnings("ignore")
def test_the_page_on_gates_for_flowjo_runs_as_it_stands(training, laboratory):
    shutil.copy(laboratory / "fcs" / "tube1.fcs", laboratory)
    done = CliRunner().invoke(
        app,
        ["train", "fcs", "-o", "model", "--kind", "gates", "--gates", "lab.wsp", "--workers", "0"],
    )
    assert done.exit_code == 0, done.output
    for command in commands_of("howto/export-gates.md"):
        done = CliRunner().invoke(app, [*command, "--workers", "0"])
        assert done.exit_code == 0, (command, done.output)
    assert len(list((laboratory / "gated").glob("*.xml"))) == 3
    names: dict[str, object] = {}
    for block in blocks_of("howto/export-gates.md"):
        exec(compile(block, "export-gates.md", "exec"), names)
    for name in ("tube1.xml", "back.wsp", "tube1_called.fcs"):
        assert (laboratory / name).stat().st_size > 1000
