"""Which files a cohort has, how they are called, and messages in the words of the command line."""

import itertools
import os
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer import Exit

from fcm_estimators._files import write_whole
from fcm_estimators.cli._running import errors_as_exit_status, in_words_of_commands
from fcm_estimators.cohort.files import file_names, list_files, read_file
from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.io import write_fcs

FOUND = ["a.fcs", "B.FCS", "c.LMD", "d.001", "e.B08", "f.h5ad", "without ending", "h.fcs.gz"]
PASSED_OVER = ["._a.fcs", ".hidden.fcs", ".DS_Store", "notes.txt", "sheet.001", "plan.A01"]


def put(folder, names):
    for name in names:
        other = name in ("notes.txt", "sheet.001", "plan.A01")
        (folder / name).write_bytes(b"other" if other else b"FCS3.1")
    return folder


def test_a_directory_stands_for_its_fcs_files_of_any_ending_and_no_hidden_ones(tmp_path):
    put(tmp_path, [*FOUND, *PASSED_OVER])
    (tmp_path / "inner.fcs").mkdir()
    assert sorted(p.name for p in list_files(tmp_path)) == sorted(FOUND)


def test_companions_of_macos_are_passed_over_also_where_they_are_named(tmp_path):
    put(tmp_path, ["a.fcs", "._a.fcs"])
    assert list_files([tmp_path / "._a.fcs", tmp_path / "a.fcs"]) == [tmp_path / "a.fcs"]
    with pytest.raises(InvalidInputError, match="No FCS"):
        list_files(tmp_path / "._a.fcs")


def test_a_file_given_twice_is_refused(tmp_path):
    put(tmp_path, ["a.fcs"])
    with pytest.raises(InvalidInputError, match=r"Files repeat: .*a\.fcs"):
        list_files([tmp_path, tmp_path / "a.fcs"])


@pytest.mark.parametrize("ending", [".fcs", ".FCS", ".001", ".B08", ".LMD", ""])
def test_an_fcs_file_is_read_whatever_its_ending(tmp_path, ending):
    adata = simulate_cohort(1, 100, random_state=0)
    one = adata[adata.obs["sample"] == adata.obs["sample"].iloc[0]].copy()
    path = tmp_path / "made.fcs"
    write_fcs(one, path)
    path = path.rename(tmp_path / f"tube{ending}")
    assert read_file(path).obs["sample"].unique().tolist() == ["tube"]
    assert read_file(path).n_obs == one.n_obs


def test_what_is_no_data_file_is_refused_by_its_name(tmp_path):
    put(tmp_path, ["notes.txt"])
    with pytest.raises(InvalidInputError, match=r"notes\.txt is no FCS file"):
        read_file(tmp_path / "notes.txt")


def test_files_are_called_by_their_stem_and_by_more_only_where_stems_repeat(tmp_path):
    paths = [
        tmp_path / n for n in ("pbmc.001", "pbmc.002", "PBMC.fcs", "b.fcs.gz", "x/c.fcs", "y/c.fcs")
    ]
    assert file_names(paths, None) == [
        "pbmc.001",
        "pbmc.002",
        "PBMC.fcs",
        "b",
        "x_c.fcs",
        "y_c.fcs",
    ]


@given(
    st.lists(
        st.tuples(*map(st.sampled_from, ["abA", "abA", [".fcs", ".FCS", ".1"]])),
        max_size=8, unique=True,
    )
)  # fmt: skip
def test_every_file_gets_a_name_of_its_own_also_where_case_is_ignored(tmp_path_factory, parts):
    place = tmp_path_factory.getbasetemp()
    paths = [place / folder / "d" / f"{stem}{ending}" for folder, stem, ending in parts]
    names = file_names(paths, None)
    assert all(a.casefold() != b.casefold() for a, b in itertools.combinations(names, 2))


def test_messages_about_names_use_the_word_of_the_function(tmp_path):
    paths = [tmp_path / "a.fcs", tmp_path / "b.fcs"]
    with pytest.raises(InvalidInputError, match=r"repeat: 'x'.*sample_names="):
        file_names(paths, ["x", "x"])
    with pytest.raises(InvalidInputError, match="1 sample_names for 2 files"):
        file_names(paths, ["x"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Name them with markers=[...].", "Name them with --markers."),
        ("label_key='cell' is missing", "--label-key 'cell' is missing"),
        ("n_workers=0 helps", "--workers 0 helps"),
        ("Go on with resume=True (--resume), or", "Go on with --resume, or"),
        ("a file of 3 markers and gates", "a file of 3 markers and gates"),
        ("obs[markers=1]", "obs[markers=1]"),
    ],
)
def test_messages_name_options_where_the_command_line_is_used(text, said):
    assert in_words_of_commands(text) == said


def test_what_the_commands_cannot_do_is_said(capsys):
    with pytest.raises(Exit), errors_as_exit_status():
        raise InvalidInputError("Pass dataset=1, marker_aliases={'a': 'A'} or markers=[...].")
    said = " ".join(capsys.readouterr().err.split())
    assert "--alias 'a=A' or --markers" in said
    assert "no option for dataset; use Python" in said


def test_warnings_are_one_line_in_the_words_of_the_commands(capsys):
    before = warnings.showwarning
    with warnings.catch_warnings(), errors_as_exit_status():
        warnings.simplefilter("always")
        warnings.warn("Not read: 'CD3'; name it with markers=[...].", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "Warning: Not read: 'CD3'; name it with --markers.\n"
    assert warnings.showwarning is before


def test_an_interrupted_save_leaves_the_old_model(tmp_path, monkeypatch):
    """Whatever file a kill comes before, the model is the old one or the new one, and whole."""
    from fcm_estimators._base import files

    old, new = (tensors_of(value) for value in (1.0, 2.0))
    nothing = files.to_json({})
    state, write = files.SavedState("Net", nothing, nothing), files.write_whole
    files.write_model(tmp_path, old, state, {"Model card": {}})
    identity = files.model_checksum(tmp_path)
    for n_written in range(3):
        left = iter([True] * n_written)

        def interrupted(path, content, left=left):
            if not next(left, False):
                raise KeyboardInterrupt
            write(path, content)

        monkeypatch.setattr(files, "write_whole", interrupted)
        with pytest.raises(KeyboardInterrupt):
            files.write_model(tmp_path, new, state, {"Model card": {}})
        found, _, _ = files.read_model(tmp_path, "Net")
        assert found["a"].item() == (2.0 if n_written == 2 else 1.0)
        assert (files.model_checksum(tmp_path) == identity) == (n_written < 2)
    monkeypatch.setattr(files, "write_whole", write)
    files.write_model(tmp_path, new, state, {"Model card": {}})
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def tensors_of(value):
    return {"a": torch.full((1,), value)}


def test_files_get_the_rights_that_the_user_wants(tmp_path):
    before = os.umask(0o077)
    try:
        write_whole(tmp_path / "secret", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
