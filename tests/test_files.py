import re
from pathlib import Path

import pytest

from caal_jax import files


def test_a_folder_is_made_with_its_parents_and_may_exist(tmp_path):
    path = files.folder(str(tmp_path / "a" / "b"))
    assert path == tmp_path / "a" / "b"
    assert path.is_dir()
    assert files.folder(path) == path


def test_writing_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes(b"an older and longer text")
    assert files.write_bytes(str(path), b"new") == path
    assert path.read_bytes() == b"new"
    files.write_text(path, "größe = 1\n")
    assert path.read_bytes() == b"gr\xc3\xb6\xc3\x9fe = 1\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_replacement_keeps_the_old_file_and_no_partial(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    path.write_text("old")
    seen = []

    def refuse(partial, target):
        # The reader's file is whole until the very end, and the new one is written beside it.
        seen.append((Path(partial).read_text(), Path(partial).parent, path.read_text(), target))
        raise OSError("refused")

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OSError, match="refused"):
        files.write_text(path, "new")
    assert seen == [("new", tmp_path, "old", path)]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_up_keeps_the_old_file_and_no_partial(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    path.write_text("old")

    def fill(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "fsync", fill)
    with pytest.raises(OSError, match="no space"):
        files.write_bytes(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("brain_0001-a.nii", "brain_0001-a.nii"),
        ("a case (2)", "a_case_2_"),
        ("<script>alert(1)</script>", "_script_alert_1_script_"),
        ("/etc/passwd", "_etc_passwd"),
        ("C:\\scans\\x", "C_scans_x"),
        ("line\nfeed\0", "line_feed_"),
        ("größe", "gr_e"),
        (".hidden", "hidden"),
        ("", "case"),
        (".", "case"),
        ("..", "case"),
        ("x" * 1000, "x" * 100),
    ],
)
def test_safe_names(name, expected):
    assert files.safe_name(name) == expected


@pytest.mark.parametrize(
    "name",
    ["../../x", "..", "a/../../b", "....//x", "~/x", "$(rm x)", "\u202egnp", "/", "." * 300 + "/x"],
)
def test_hostile_names_stay_one_visible_file_in_their_folder(tmp_path, name):
    safe = files.safe_name(name)
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", safe)
    assert files.safe_name(safe) == safe
    path = files.write_text(tmp_path / safe, "x")
    assert path.resolve().parent == tmp_path.resolve()
    assert list(tmp_path.iterdir()) == [path]


def test_distinct_names_never_meet():
    names = files.distinct_names(["a b", "a_b", "A_B", "\u65e5", "\u672c", "a_b_2"])
    assert len({name.lower() for name in names}) == 6
    assert names[0] == "a_b"
