"""The readers of the public sets, on tiny downloads in their own layouts."""

import contextlib
import gzip
import tracemalloc

import cv2
import layouts
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from caal_jax.data.public import SETS, chestxray14, deeplesion, jsrt, lidc, tables, truth
from caal_jax.errors import InputError

SMALL = 64  # side of a film here; the published ones have 2048


@pytest.fixture(scope="module", autouse=True)
def _small_films():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsrt, "SIDE", SMALL)
        yield


def read(name, root, **options):
    return SETS[name].dataset(root, validation_fraction=0.25, seed=0, **options)


def loaded(entries):
    return {entry.case_id: entry.load() for entry in entries}


@pytest.mark.parametrize("name", [name for name in SETS if name not in ("mood", "busi", "lgg")])
def test_training_is_normal_and_patients_are_kept_apart(tmp_path, name):
    # jsrt's own size, so that patients differ there too.
    root = layouts.jsrt(tmp_path, SMALL) if name == "jsrt" else getattr(layouts, name)(tmp_path)
    data = read(name, root, variant="nut" if name == "mvtec" else "")
    assert data.train
    assert data.test
    parts = [loaded(part) for part in (data.train, data.validation, data.test)]
    for case in (*parts[0].values(), *parts[1].values()):
        assert (case.label, case.kind) == (0, "normal")
        assert not case.mask.any()
    people = [{case.patient for case in part.values()} for part in parts]
    assert not people[0] & people[1]
    assert not (people[0] | people[1]) & people[2]
    abnormal = [case for case in parts[2].values() if case.label]
    assert abnormal
    assert data.test_has_masks == any(case.mask is not None for case in abnormal)
    for case in abnormal:
        assert case.kind != "normal"
        assert case.mask is None or case.mask.any()
    for part in parts:
        for case in part.values():
            assert np.can_cast(case.image.dtype, SETS[name].dtype, "safe")


def test_jsrt_films_are_bright_where_dense_and_nodules_are_discs(tmp_path):
    data = read("jsrt", layouts.jsrt(tmp_path, SMALL))
    cases = loaded(data.test)
    first = cases["JPCLN001"]
    assert_array_equal(first.image[..., 0], 4095 - layouts.film("JPCLN001", SMALL))
    assert first.image.dtype == np.uint16
    assert first.geometry.spacing_mm == (0.175, 0.175)
    # 15 mm across at 0.175 mm a pixel, round column 40 and row 21.
    y, x = np.indices((SMALL, SMALL))
    assert_array_equal(first.mask, np.hypot(x - 40, y - 21) <= 15 / 0.35)
    assert first.kind == "subtlety 5"
    for name in ("JPCLN002", "JPCLN003"):
        assert (cases[name].label, cases[name].mask, cases[name].kind) == (1, None, "nodule")
    assert data.notes == (
        "2 films with a nodule, the first being JPCLN002, have no usable line in CLNDAT_EN.txt "
        "and count for image scores only.",
    )
    assert len(data.train) + len(data.validation) == 5


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
@pytest.mark.parametrize("gap", ["\t", " ", "  \t"])
def test_jsrt_table_with_any_line_ends_and_gaps(tmp_path, end, gap):
    fields = ["JPCLN007.IMG", "2", "12.5", "?", "Female", "30", "41", "benign", "x", "y 3"]
    other = ["jpcln008", "6", "12", "50", "Male", "1", "1", "benign"]
    path = tmp_path / "CLNDAT_EN.txt"
    path.write_bytes(end.join([gap.join(fields), gap.join(other), "JPCLN010.IMG"]).encode())
    assert jsrt.read_nodules(path) == {"JPCLN007": (2, 12.5, 30.0, 41.0)}


def test_jsrt_lines_of_one_film(tmp_path):
    path = tmp_path / "CLNDAT_EN.txt"
    line = "JPCLN007.IMG\t2\t12.5\t?\tFemale\t30\t41\tbenign\r"
    path.write_text(2 * line + line.replace("\t30", "\t?"))
    assert jsrt.read_nodules(path) == {"JPCLN007": (2, 12.5, 30.0, 41.0)}
    path.write_text(line + line.lower().replace("\t30", "\t31"))
    with pytest.raises(InputError, match="found two lines for JPCLN007 that differ"):
        jsrt.read_nodules(path)


def test_jsrt_films_that_cannot_be_right(tmp_path):
    root = layouts.jsrt(tmp_path, SMALL)
    path = root / "films" / "JPCNN001.IMG"
    data = read("jsrt", root)
    entry = {one.case_id: one for one in data.train + data.validation + data.test}
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    with pytest.raises(InputError, match=r"JPCNN001\.IMG: found 8190 bytes; expected 8192"):
        entry["JPCNN001"].load()
    path.write_bytes(np.frombuffer(whole, ">u2").astype("<u2").tobytes())
    with pytest.raises(InputError, match="expected 12 bits, big-endian"):
        entry["JPCNN001"].load()
    (root / "again").mkdir()
    (root / "again" / "jpcnn001.img").write_bytes(whole)
    with pytest.raises(InputError, match="a second file of that name"):
        read("jsrt", root)


def test_chestxray14_follows_its_lists(tmp_path):
    data = read("chestxray14", layouts.chestxray14(tmp_path))
    cases = loaded(data.test)
    assert sorted(cases) == [f"{k:08d}_000" for k in (12, 13, 14, 15)]
    boxed = cases["00000013_000"]
    want = np.zeros((24, 30), bool)
    want[4:9, 5:12] = True
    assert_array_equal(boxed.mask, want)
    assert boxed.kind == "Mass"
    # The original's 4096 rows of 0.2 mm and 2048 columns of 0.1 mm on 24 x 30 pixels.
    assert_allclose(boxed.geometry.spacing_mm, (0.2 * 4096 / 24, 0.1 * 2048 / 30))
    assert cases["00000015_000"].mask is None
    assert not cases["00000012_000"].mask.any()
    assert loaded(data.train + data.validation)["00000004_000"].image.shape == (24, 30, 1)
    assert data.notes == (
        "1 images have no credible age and are left out.",
        "1 images of the table are not there and are left out.",
        "1 images stand twice in the table and are left out.",
        "The test patients are those of test_list.txt.",
        "2 boxes are empty, outside the image or not numbers; left out.",
    )
    women = read("chestxray14", tmp_path, variant="F")
    assert {case.patient for case in loaded(women.train + women.validation).values()} == {
        "0", "2", "4",
    }  # fmt: skip


def test_chestxray14_of_the_published_size(tmp_path):
    root = layouts.chestxray14(tmp_path)
    layouts.put(root / "images" / "00000013_000.png", layouts.picture(13, (1024, 1024)))
    case = loaded(read("chestxray14", root).test)["00000013_000"]
    rows, columns = np.nonzero(case.mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (171, 383, 171, 409)
    assert_allclose(case.geometry.spacing_mm, (0.2 * 4, 0.1 * 2))


def test_chestxray14_without_lists_and_with_broken_ones(tmp_path):
    root = layouts.chestxray14(tmp_path)
    (root / "test_list.txt").write_text("00000012_000.png\n")
    with pytest.raises(InputError, match="other images of the patient of 00000013_000"):
        read("chestxray14", root)
    (root / "test_list.txt").unlink()
    (root / "BBox_List_2017.csv").unlink()
    data = read("chestxray14", root)
    assert not data.test_has_masks
    assert len({case.patient for case in loaded(data.test).values()}) == 2
    with pytest.raises(InputError, match="sex: found 'X'"):
        chestxray14.chestxray14(root, sex="X")
    table = root / "Data_Entry_2017.csv"
    table.write_text(table.read_text(encoding="utf-8-sig").replace("Patient Age", "Age"))
    with pytest.raises(InputError, match="no column 'Patient Age'"):
        read("chestxray14", root)


def test_mimic_cxr_follows_the_publishers(tmp_path):
    data = read("mimic_cxr", layouts.mimic_cxr(tmp_path))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [2, 2, 3]
    cases = loaded(data.test)
    assert [case.kind for case in cases.values()] == ["normal", "normal", "Edema"]
    assert all(name.endswith("-pa") for name in cases)
    assert data.notes[1:] == ("3 PA images have no usable label.", "1 PA images are not there.")
    split = tmp_path / "mimic-cxr-2.0.0-split.csv.gz"
    rows = tables.read_table(split, ("split",))
    rows[1]["split"] = "test"
    layouts.table(split, rows[0].keys(), [row.values() for row in rows])
    with pytest.raises(InputError, match="found patient 10000001 in 'test'"):
        read("mimic_cxr", tmp_path)


def test_mimic_cxr_stays_in_its_folder(tmp_path):
    layouts.mimic_cxr(tmp_path / "in")
    name = "../../../../../outside"
    for table in ("split", "metadata"):
        (path,) = (tmp_path / "in").glob(f"*{table}*")
        rows = tables.read_table(path, ("dicom_id",))
        rows[0]["dicom_id"] = name
        layouts.table(path, rows[0].keys(), [row.values() for row in rows])
    layouts.put(tmp_path / "outside.jpg", layouts.picture(0))
    data = read("mimic_cxr", tmp_path / "in")
    assert name not in {entry.case_id for entry in data.train}
    assert "2 PA images are not there." in data.notes


def test_deeplesion_trains_far_from_lesions_and_tests_on_key_slices(tmp_path):
    data = read("deeplesion", layouts.deeplesion(tmp_path))
    # Slices 5 mm apart, more than 15 mm from key slice 104; the first patient also has one at 110.
    low, high = {97, 98, 99, 100}, {108, 109, 110, 111}
    for patient, want in (("000001", low), ("000002", low | high)):
        ids = [entry.case_id for entry in data.train if entry.case_id.startswith(patient)]
        assert {int(name[-3:]) for name in ids} == want
    assert len(data.validation) == 8
    cases = loaded(data.test)
    assert sorted(cases) == ["000004_01_02_097", "000004_01_02_104"]
    key = cases["000004_01_02_104"]
    want = np.zeros((24, 30), bool)
    want[4:9, 5:12] = True  # pixel centres inside 5.5 .. 12, 4.2 .. 9
    want[4, 5] = True
    want[15:20, 20:25] = True
    assert_array_equal(key.mask, want)
    assert key.kind == "lung"
    assert key.geometry.spacing_mm == (0.8, 0.5)
    raw = cv2.imread(str(tmp_path / "Images_png/000004_01_02/104.png"), cv2.IMREAD_UNCHANGED)
    assert_array_equal(key.image[..., 0], np.maximum(raw.astype(int) - 32768, -1024))
    assert key.image.dtype == np.int16
    assert data.notes[1:] == (
        "2 lines of DL_info.csv are not usable (empty boxes, broken numbers).",
        "1 series are not there, the first being 000007_01_01.",
    )
    assert deeplesion.to_hounsfield(np.array([0, 32768, 65535], np.uint16)).tolist() == [
        -1024, 0, 3071,
    ]  # fmt: skip


def test_deeplesion_refuses_a_patient_on_two_sides(tmp_path):
    table = layouts.deeplesion(tmp_path) / "DL_info.csv"
    rows = tables.read_table(table, ())
    rows[0]["Train_Val_Test"] = "3"
    rows.append({**rows[0], "Train_Val_Test": "1"})
    layouts.table(table, rows[0].keys(), [row.values() for row in rows])
    with pytest.raises(InputError, match="patient 000001 in two parts"):
        read("deeplesion", tmp_path)


def test_head_ct_keeps_neighbours_together(tmp_path):
    data = read("head_ct", layouts.head_ct(tmp_path))
    assert "1 images of labels.csv are not there." in data.notes
    assert {entry.case_id for entry in data.test} >= {f"{k:03d}" for k in range(10)}
    runs = [{int(e.case_id) // 5 for e in part} for part in (data.train, data.validation)]
    assert not runs[0] & runs[1]
    labels = tmp_path / "labels.csv"
    labels.write_text(labels.read_text(encoding="utf-8-sig") + "100, 1\n")
    with pytest.raises(InputError, match="the line 100, 1"):
        read("head_ct", tmp_path)


def test_mvtec_names_the_categories_that_are_there(tmp_path):
    layouts.mvtec(tmp_path)
    assert len(read("mvtec", tmp_path / "nut").test) == 2
    with pytest.raises(InputError, match=r"category 'bolt'.*found the categories nut"):
        read("mvtec", tmp_path, variant="bolt")


@pytest.fixture(scope="module")
def lidc_root(tmp_path_factory):
    return layouts.lidc(tmp_path_factory.mktemp("lidc"))


def test_lidc_truth_is_what_two_readers_enclose(lidc_root):
    data = read("lidc", lidc_root)
    (entry,) = data.test
    case = entry.load()
    assert case.image.shape == (12, 24, 24, 1)
    assert_allclose(case.geometry.spacing_mm, (2.5, 0.7, 0.7))
    patient = int(case.patient[-4:])
    want = np.clip(layouts.lidc_pixels(patient).astype(int) - 1024, -1000, 400)
    assert_array_equal(case.image[..., 0], want)
    mask = np.zeros((12, 24, 24), bool)
    # Inside the ring from 6, 5 to 12, 11, without the ring; the second reader's is shifted by 2.
    mask[4, 6:11, 9:12] = True
    mask[4, 7:10, 8:11] = False
    mask[5, 6:11, 7:12] = True
    assert_array_equal(case.mask, mask)
    assert (case.label, case.kind) == (1, "nodule")


def test_lidc_trains_clear_of_every_mark(lidc_root):
    for case in loaded(read("lidc", lidc_root).train).values():
        # Marks on slices 4, 5 and 9, of 2.5 mm: two more on either side are too near.
        kept = [0, 1]
        assert_allclose(case.positions, np.array(kept) / 11)
        patient = int(case.patient[-4:])
        want = np.clip(layouts.lidc_pixels(patient)[kept].astype(int) - 1024, -1000, 400)
        assert_array_equal(case.image[..., 0], want)


def test_lidc_marks_lie_where_their_slices_do_in_any_orientation(tmp_path, lidc_root):
    upright, turned = read("lidc", lidc_root), read("lidc", layouts.lidc(tmp_path))
    for entry in (turned.test[0], turned.train[0]):
        for path in entry.paths[0].glob("*.dcm"):
            header = pydicom.dcmread(path)
            # Columns run up: the normal, along which slices are sorted, points down.
            header.ImageOrientationPatient = [1, 0, 0, 0, -1, 0]
            header.save_as(path)
    for entry, other in ((upright.test[0], turned.test[0]), (upright.train[0], turned.train[0])):
        case, again = entry.load(), other.load()
        assert case.case_id == again.case_id
        assert_array_equal(again.image, case.image[::-1])
        assert_array_equal(again.mask, case.mask[::-1])
    assert_allclose(again.positions, [10 / 11, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-30], "broken XML"),
        (lambda text: text.replace("LidcReadMessage", "Other"), "the root element .*Other"),
        (lambda text: text.replace("<xCoord>6<", "<xCoord>six<"), "broken XML"),
        (lambda text: text.replace("<xCoord>6<", "<xCoord>60<"), "a mark outside the image"),
        (lambda text: text.replace("-90.0", "-390.0"), "a mark at z -390.0"),
        (lambda text: text.replace("-90.0", "nan"), "a mark at z nan"),
        (lambda text: text.replace("Uid>", "Uid>9", 1), "slices of the series"),
        (
            lambda text: text.replace("?>", '?><!DOCTYPE a [<!ENTITY b "6">]>', 1).replace(
                "<xCoord>6<", "<xCoord>&b;<"
            ),
            "broken XML",
        ),
    ],
)
def test_lidc_readings_that_cannot_be_used(tmp_path, change, message):
    root = layouts.lidc(tmp_path, patients=3)
    (entry,) = read("lidc", root).test
    xml = entry.paths[1]
    xml.write_text(change(xml.read_text()))
    with pytest.raises(InputError, match=message):
        entry.load()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


READING = layouts.reading("1.2", [[layouts.nodule(["1"] * 9, 4, [(1, 2), (3, 4)])]]).encode()
NODULES = b"JPCLN001.IMG\t5\t15\t?\tMale\t40\t21\tmalignant\r" * 2
TABLE = b'a,b\n"1, 2",3\n'


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([READING, NODULES, TABLE, gzip.compress(TABLE, mtime=0)]),
    st.integers(0, 1000),
    st.integers(0, 40),
    st.binary(max_size=30),
)
def test_damaged_tables_and_readings_are_told(scratch, whole, at, length, junk):
    path = scratch / ("a.csv.gz" if whole.startswith(b"\x1f") else "a.csv")
    at %= len(whole) + 1
    path.write_bytes(whole[:at] + junk + whole[at + length :])
    for parse in (
        lidc.read_outlines,
        jsrt.read_nodules,
        lambda p: tables.read_table(p, ("a", "b")),
    ):
        with contextlib.suppress(InputError):
            parse(path)


def test_lidc_without_marks_is_normal(tmp_path):
    root = layouts.lidc(tmp_path, patients=3)
    (entry,) = read("lidc", root).test
    text = entry.paths[1].read_text()
    uid = text.split("<SeriesInstanceUid>")[1].split("<")[0]
    entry.paths[1].write_text(layouts.reading(uid, []))
    assert (entry.load().label, entry.load().kind) == (0, "normal")
    assert lidc.read_outlines(entry.paths[1]) == (uid, [])


def test_rows_have_the_wanted_columns_alone(tmp_path):
    path = tmp_path / "wide.csv"
    lines = [",".join(f"{row:08d}{column:08d}" for column in range(16)) for row in range(2000)]
    path.write_text("\n".join([",".join(f"c{column}" for column in range(16)), *lines]))
    tracemalloc.start()
    rows = tables.read_table(path, ("c0",), keep=("c0", "c15", "c99"))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows[7] == {"c0": "0000000700000000", "c15": "0000000700000015"}
    # Two strings of 16 letters and their dictionary per row.
    assert held < 2000 * 400
    assert tables.read_table(path, ("c0",))[7]["c3"] == "0000000700000003"


def test_tables(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbf a , b\r"1, 2",3\r\r4\r')
    assert tables.read_table(path, ("a", "b")) == [{"a": "1, 2", "b": "3"}, {"a": "4", "b": ""}]
    for content, message in [
        (b"a,b\n1\0,2\n", "no text"),
        (b'a,b\n"1,2\n', "broken CSV"),
        (b"", "no column 'a'"),
    ]:
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            tables.read_table(path, ("a",))
    layouts.table(tmp_path / "a.csv.gz", ["a"], [["1"]])
    packed = (tmp_path / "a.csv.gz").read_bytes()
    assert tables.read_table(tmp_path / "a.csv.gz", ("a",)) == [{"a": "1"}]
    for cut in (3, 15, len(packed) - 4):
        (tmp_path / "b.csv.gz").write_bytes(packed[:cut])
        with pytest.raises(InputError, match="damaged data"):
            tables.read_text(tmp_path / "b.csv.gz")
    with pytest.raises(InputError, match="no such file"):
        tables.read_text(tmp_path / "none.csv")


def test_a_table_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_BYTES", 1000)
    layouts.table(tmp_path / "a.csv.gz", ["a"], [["1" * 1001]])
    with pytest.raises(InputError, match="more than 1000 bytes"):
        tables.read_text(tmp_path / "a.csv.gz")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("1, 2.5", [1, 2.5]),
        ("[1 2]", [1, 2]),
        ("1,,2", [1, 2]),
        ("1", None),
        ("1, nan", None),
        ("1, inf", None),
        ("", None),
        ("1, 1e99", None),
    ],
)
def test_numbers_of_a_field(text, want):
    assert tables.numbers(text, 2) == want


def test_boxes_and_discs():
    mask = truth.box_mask((6, 8), [(-3, 1, 2, 3), (6, 4, 99, 99)])
    want = np.zeros((6, 8), bool)
    want[1:3, :2] = want[4:, 6:] = True
    assert_array_equal(mask, want)
    assert truth.disc_mask((9, 9), x=4, y=4, radius_px=3).sum() == 29  # lattice points
