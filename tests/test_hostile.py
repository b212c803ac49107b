"""Damaged and hostile input: a result or an FcmError, soon, in little memory, and no code run.

``benchmarks/fuzz.py`` does the same with tens of thousands of files.
"""

from __future__ import annotations

import ast
import contextlib
import json
import shutil
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import explainers
import fcm_estimators
from fcm_estimators import FcmError, ReluFormerClassifier, read_fcs
from fcm_estimators.exceptions import FcsError, ModelFormatError
from fcm_estimators.models import load_model
from tests.helpers import benchmark, toy_cohort, weights_file

ROOT = Path(__file__).parents[1]


fuzz = benchmark("fuzz")


def read_or_refused(path):
    """Events of a file, None if it was refused; little memory either way."""
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what was guessed does not matter here
            return read_fcs(path)
    except FcmError:
        return None
    finally:
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
        tracemalloc.stop()


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    return fuzz.seeds(tmp_path_factory.mktemp("valid"))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.integers(0, 4), seed=st.integers(0, 2**32))
def test_mutated_files(valid, tmp_path, kind, seed):
    path = tmp_path / "mutated.fcs"
    path.write_bytes(fuzz.mutated(valid[kind], np.random.default_rng(seed)))
    read_or_refused(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keyword=st.sampled_from(fuzz.KEYWORDS),
    value=st.one_of(
        st.sampled_from(fuzz.NASTY),
        st.integers(-(2**70), 2**70).map(lambda n: str(n).encode()),
        st.binary(max_size=40),
    ),
)
@example(keyword=b"$TOT", value=b"9" * 15)
@example(keyword=b"$PAR", value=b"9" * 9)
@example(keyword=b"$ENDANALYSIS", value=b"20000000000")
@example(keyword=b"$NEXTDATA", value=b"-9223372036854775808")
@example(keyword=b"$BEGINSTEXT", value=b"-5")
def test_any_value_of_any_keyword(valid, tmp_path, keyword, value):
    content = bytearray(valid[1])
    start = content.find(keyword + b"/")
    if start < 0:
        content[58:58] = b"/" + keyword + b"/" + value
    else:
        begin = start + len(keyword) + 1
        content[begin : content.find(b"/", begin)] = value
    path = tmp_path / "keyword.fcs"
    path.write_bytes(bytes(content))
    read_or_refused(path)


@given(content=st.binary(max_size=400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes(tmp_path, content):
    path = tmp_path / "any.fcs"
    path.write_bytes(content)
    read_or_refused(path)
    path.write_bytes(b"FCS3.1    " + content)
    read_or_refused(path)


def test_valid_files_are_read(valid, tmp_path):
    for content in valid:
        path = tmp_path / "valid.fcs"
        path.write_bytes(content)
        assert read_or_refused(path).n_obs > 0


def test_truncation_at_every_byte_is_refused(valid, tmp_path):
    path = tmp_path / "cut.fcs"
    content = valid[1]
    for n in range(0, len(content) - 1, 3):
        path.write_bytes(content[:n])
        with pytest.raises(FcsError):
            read_fcs(path)


# -- models -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    ReluFormerClassifier(
        n_members=0,
        label_key="cell_type",
        max_epochs=1,
        steps_per_epoch=1,
        hidden_dim=8,
        n_layers=1,
    ).fit(toy_cohort(1)).save(folder)
    return folder


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_twisted_descriptions_of_models(saved, tmp_path, seed):
    described = json.loads((saved / "model.json").read_text())
    fuzz.twist(described, np.random.default_rng(seed))
    shutil.copy(weights_file(saved), tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(described))
    with contextlib.suppress(FcmError):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("hidden_dim", 2**20), ("n_layers", 10**9), ("n_heads", 2**40)]
)
def test_a_huge_net_is_refused_without_being_made(saved, tmp_path, name, value):
    described = json.loads((saved / "model.json").read_text())
    for pair in described["params"]["pairs"]:
        if pair[0] == name:
            pair[1] = value
    shutil.copy(weights_file(saved), tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(described))
    with pytest.raises(ModelFormatError):
        load_model(tmp_path)


# -- no code from files -------------------------------------------------------------------------

FORBIDDEN = {
    "pickle", "cPickle", "dill", "marshal", "shelve", "eval", "exec", "compile", "__import__",
    "torch.load", "joblib.load", "np.load", "numpy.load", "yaml.load", "os.system", "os.popen",
}  # fmt: skip


def test_nothing_unpickles_or_evaluates():
    found = []
    for package in (fcm_estimators, explainers):
        for path in Path(package.__file__).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = []
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
                elif isinstance(node, ast.Call):
                    names = [ast.unparse(node.func)]
                found += [f"{path.name}: {name}" for name in names if name in FORBIDDEN]
    assert found == []
