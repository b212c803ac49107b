"""The package as it is installed and imported."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import venv
import warnings
import zipfile
from pathlib import Path

import anndata

from explainers import AttentionExplainer

ROOT = Path(__file__).parents[1]


def run(code, python=sys.executable, **kwargs):
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_loads_neither_torch_nor_matplotlib():
    code = (
        "import sys, fcm_estimators, explainers;"
        "print([m for m in ('torch', 'matplotlib', 'scanpy', 'skorch') if m in sys.modules])"
    )
    assert run(code) == "[]"


def test_reading_and_preparing_data_needs_no_torch():
    code = (
        "import sys; from fcm_estimators import read_fcs, datasets, labels, metrics, preprocessing;"
        "print('torch' in sys.modules)"
    )
    assert run(code) == "False"


def test_every_public_name_loads():
    code = (
        "import fcm_estimators as f; [getattr(f, name) for name in f.__all__]; print(f.__version__)"
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", run(code))


def test_wheel_installs_and_imports_both_packages(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    page = [f"fcm_estimators/report/page.{kind}" for kind in ("html.j2", "css", "js")]
    typed = ["fcm_estimators/py.typed", "explainers/py.typed", "fcm_estimators/__init__.pyi"]
    assert {*page, *typed} <= set(names)
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/", "docs/"))]
    # The dependencies are those of this environment; the package itself comes from the wheel.
    venv.create(tmp_path / "env", with_pip=True, system_site_packages=False)
    python = tmp_path / "env" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--no-deps", "--quiet", wheel]
    subprocess.run(install, check=True, capture_output=True)
    site = Path(run("import sysconfig; print(sysconfig.get_path('purelib'))"))
    code = (
        f"import sys; sys.path.append({str(site)!r});"
        "import fcm_estimators, explainers;"
        "from fcm_estimators import ReluFormerClassifier;"
        "print(fcm_estimators.__file__, explainers.__file__)"
    )
    loaded = run(code, python=str(python), cwd=tmp_path)
    assert loaded.count(str(tmp_path / "env")) == 2


def python_blocks(*path):
    text = ROOT.joinpath(*path).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.S)


def test_readme_and_the_pages_that_go_on_from_it_run(training, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (first,) = python_blocks("README.md")
    assert len(first.strip().splitlines()) <= 15
    names = {"__name__": "readme"}
    # Of the patient that is left out, the sample of the diagnosis is unlike all others.
    far = "as far from the training samples"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        exec(compile(first, "README.md", "exec"), names)
    assert any(far in str(w.message) for w in told)
    assert "held out" in capsys.readouterr().out
    test = names["test"]
    assert {"reluformer", "gradient_norm"} <= set(test.obs)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        exec(compile(python_blocks("docs", "gating.md")[0], "gating.md", "exec"), names)
    assert any(far in str(w.message) for w in told)
    assert "predicted_gates_membership" in test.obsm
    with warnings.catch_warnings():
        # What the next pages warn of was told above, and short trainings disagree.
        warnings.simplefilter("ignore")
        if training == "whole":
            called, true = (test.obs[key] == "blast" for key in ("reluformer", "cell_type"))
            assert 2 * (called & true).sum() / (called.sum() + true.sum()) > 0.95
            table = names["reg"].score_table(test)
            assert table.groupby("gate")["f1"].mean()[["syto", "cd19"]].min() > 0.9
        # The page on large samples goes on from there.
        test.write_h5ad("trial.h5ad")
        stores, _, own_code = python_blocks("docs", "large-samples.md")
        names["AttentionExplainer"] = AttentionExplainer
        exec(compile(stores, "large-samples.md", "exec"), names)
        exec(compile(own_code, "large-samples.md", "exec"), names)
    trial = anndata.read_h5ad("trial.h5ad")
    assert (trial.obs["reluformer"] == test.obs["reluformer"]).mean() > 0.999
    assert {"attention_head", "gradient_norm"} <= set(trial.obs)
    assert names["logits"].shape == (300_000, 2)


def test_page_on_many_files_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    from fcm_estimators import write_fcs
    from fcm_estimators.datasets import simulate_cohort
    from fcm_estimators.models import load_model
    from fcm_estimators.workflow import train_model

    monkeypatch.chdir(tmp_path)
    raw = simulate_cohort(3, 800, random_state=0)
    for folder in ("training", "new_files", "tables"):
        (tmp_path / folder).mkdir()
    for i, sample in enumerate(raw.obs["sample"].cat.categories):
        one = raw[raw.obs["sample"] == sample].copy()
        write_fcs(one, tmp_path / ("new_files" if i == 2 else "training") / f"{sample}.fcs")
        table = one.obsm["gates"].astype(int).assign(event=one.obs["event"])
        table.to_csv(tmp_path / "tables" / f"{sample}.csv", index=False)
    monkeypatch.setattr(
        "fcm_estimators.workflow.train_model", functools.partial(train_model, max_epochs=1)
    )
    page = (ROOT / "docs" / "many-files.md").read_text()
    files, quality, distance = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    names = {"file": next((tmp_path / "new_files").iterdir())}
    exec(compile(files, "many-files.md", "exec"), names)
    assert names["table"]["status"].tolist() == ["done"]
    exec(compile(quality, "many-files.md", "exec"), names)
    assert "n_qc_any" in capsys.readouterr().out
    names["clf"] = load_model("model")
    names["adata"] = names["clf"].prepare(names["adata"])
    exec(compile(distance, "many-files.md", "exec"), names)
    assert "distance" in capsys.readouterr().out


def other_distribution(folder):
    """A distribution of somebody else, which has a package ``explainers`` too."""
    info = folder / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "RECORD").write_text("explainers/__init__.py,,\nother-1.0.dist-info/METADATA,,\n")
    (folder / "explainers").mkdir()
    (folder / "explainers" / "__init__.py").write_text("class Explainer: ...\n")
    return str(folder)


CAUGHT = (
    "import sys, warnings; sys.path.{place}; "
    "context = warnings.catch_warnings(record=True); told = context.__enter__(); "
    "warnings.simplefilter('always'); import fcm_estimators; {use}; "
    "print([str(w.message) for w in told])"
)


def test_a_foreign_explainers_before_ours_is_told_at_import(tmp_path):
    other = other_distribution(tmp_path)
    told = run(CAUGHT.format(place=f"insert(0, {other!r})", use="pass"))
    assert f"found in {Path(other).resolve() / 'explainers'}" in told
    assert "not that of fcm-estimators" in told


def test_a_foreign_explainers_behind_ours_is_told_at_the_first_use_and_not_before(tmp_path):
    place = f"append({other_distribution(tmp_path)!r})"
    silent = "import explainers; explainers.__version__"
    assert run(CAUGHT.format(place=place, use=silent)) == "[]"
    used = "import explainers; explainers.LogOdds; explainers.Share"
    told = run(CAUGHT.format(place=place, use=used))
    assert told.count("is also installed by other.") == 1


def test_the_packages_have_one_version_and_no_foreign_owner_is_seen():
    use = "import explainers; explainers.LogOdds; assert explainers.__version__"
    told = run(CAUGHT.format(place="copy()", use=use))
    assert "explainers" not in told
    code = "import fcm_estimators as f, explainers as e; print(f.__version__ == e.__version__)"
    assert run(code) == "True"
