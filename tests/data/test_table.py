"""A CSV of the user's own images."""

import contextlib

import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from caal_jax.data import load_dataset
from caal_jax.data.split import read_split
from caal_jax.data.table import read_lines, table
from caal_jax.errors import InputError

RNG = np.random.default_rng(0)


def put(path, array=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if array is None:
        array = RNG.integers(0, 256, (24, 30)).astype(np.uint8)
    Image.fromarray(array).save(path)


@pytest.fixture
def home(tmp_path):
    for name in "abcdefgh":
        put(tmp_path / "scans" / f"{name}.png")
    lesion = np.zeros((24, 30), np.uint8)
    lesion[4:9, 5:12] = 255
    put(tmp_path / "m1.png", lesion)
    put(tmp_path / "m2.png", np.roll(lesion, 12, axis=0))
    put(tmp_path / "empty.png", lesion * 0)
    return tmp_path


def write(home, text):
    path = home / "cases.csv"
    path.write_text(text)
    return path


LINES = """file,split,patient,kind,mask
scans/a.png,train,p1,normal,
scans/b.png,train,p1,,
scans/c.png,train,p2,,
scans/d.png,validation,p3,,
scans/e.png,test,p4,dent,m1.png;m2.png
scans/f.png,test,p5,normal,
scans/g.png,test,p6,,m1.png
scans/h.png,test,p7,,empty.png
"""


def test_every_column(home):
    data = table(write(home, LINES))
    assert data.name == "cases"
    assert [entry.case_id for entry in data.train] == ["scans-a", "scans-b", "scans-c"]
    assert [entry.load().patient for entry in data.train + data.validation] == [
        "p1",
        "p1",
        "p2",
        "p3",
    ]
    cases = [entry.load() for entry in data.test]
    assert [case.label for case in cases] == [1, 0, 1, 0]
    assert [case.kind for case in cases] == ["dent", "normal", "abnormal", "normal"]
    assert [int(case.mask.sum()) for case in cases] == [70, 0, 35, 0]
    assert data.stamp == ""
    assert data.test_has_masks
    assert data.test[0].paths == (home / "scans/e.png", home / "m1.png", home / "m2.png")


def test_two_columns_are_enough(home):
    lines = "".join(f"scans/{name}.png,train\r" for name in "abcdefgh")  # old line ends
    config = ml_collections.ConfigDict(
        {
            "dataset": "folder",
            "data_dir": str(write(home, "file,split\r" + lines)),
            "validation_fraction": 0.25,
            "seed": 0,
        }
    )
    data = load_dataset(config)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [4, 2, 2]
    assert data.stamp == "planted"
    assert data.test_has_masks


def test_masks_that_are_not_given(home):
    text = "file,split,kind\nscans/a.png,train,\nscans/b.png,train,\nscans/c.png,test,dent\n"
    data = table(write(home, text))
    assert not data.test_has_masks
    assert data.test[0].load().mask is None


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("scans/z.png,test,p9,dent,", "row 10: found file 'scans/z.png', which is not there"),
        (",test,p9,dent,", "found file ''"),
        ("x" * 300 + ",test,p9,dent,", "which is not there"),
        ("m2.png,test,p9,dent," + "x" * 300, "which is not there"),
        ("scans/a.png,test,p9,dent,", "'scans/a.png' a second time"),
        ("scans/../m2.png,test,p9,,", "neither kind nor mask"),
        ("m2.png,val,p9,dent,", "found split 'val'; expected train or validation or test"),
        ("m2.png,train,p9,dent,", "found dent in split train; expected healthy"),
        ("m2.png,validation,p9,,m1.png", "found a mask in split validation"),
        ("m2.png,test,p9,dent,m3.png", "found mask 'm3.png', which is not there"),
    ],
)
def test_rows_that_cannot_be_used(home, line, found):
    path = write(home, LINES + line + "\n")
    with pytest.raises(InputError, match=found):
        table(path)
    lines, problems = read_lines(path)
    assert len(lines) == 8
    assert len(problems) == 1


def test_tables_that_cannot_be_used(home):
    with pytest.raises(InputError, match="no column 'split'"):
        table(write(home, "file,patient\nscans/a.png,p1\n"))
    with pytest.raises(InputError, match=r"found 1 patient\(s\) with split train"):
        table(write(home, "file,split,patient\nscans/a.png,train,p\nscans/b.png,train,p\n"))
    with pytest.raises(InputError, match=r"gone\.csv"):
        table(home / "gone.csv")


CELLS = st.one_of(
    st.sampled_from(["train", "test", "normal", "a.png", "m1.png", "..", "\r", '"', "\0", ";"]),
    st.text(max_size=8),
)


@settings(max_examples=60, deadline=None, database=None)
@given(
    rows=st.lists(st.lists(CELLS, max_size=6).map(",".join), max_size=4),
    noise=st.binary(max_size=12),
)
def test_no_table_raises_anything_else(tmp_path_factory, rows, noise):
    path = tmp_path_factory.mktemp("fuzz") / "cases.csv"
    head = b"file,split,patient,kind,mask\n"
    path.write_bytes(head + "\n".join(rows).encode(errors="surrogatepass") + noise)
    for read in (table, lambda path: read_split(path, ("file", "use"))):
        with contextlib.suppress(InputError):
            read(path)
