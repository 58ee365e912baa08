"""Public downloads into records and back: complete, restartable, checked, and fit to train on."""

import dataclasses
import errno
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import layouts
import ml_collections
import numpy as np
import pytest
import tensorflow_datasets as tfds
from numpy.testing import assert_array_equal
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from caal_jax import files, parallel, train
from caal_jax.data import archives, load_dataset, prepare, public, records
from caal_jax.data.case import Case, Geometry
from caal_jax.data.public import jsrt
from caal_jax.data.slices import SliceBank
from caal_jax.defaults import training_config
from caal_jax.errors import InputError
from caal_jax.localisers import Localiser

SMALL = 64
PARTS = {"mood": "brain", "mvtec": "nut", "lgg": "flair", "chestxray14": "all"}


@pytest.fixture(scope="module", autouse=True)
def _small():
    """Small films, parts of two cases, and programs that are not worth compiling well."""
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsrt, "SIDE", SMALL)
        patch.setattr(prepare, "CASES_PER_PART", 2)
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def make(name, root):
    return layouts.jsrt(root, SMALL) if name == "jsrt" else getattr(layouts, name)(root)


@pytest.fixture(scope="module", params=list(public.SETS))
def prepared(request, tmp_path_factory):
    """(name, folder of the download, folder of its records)"""
    name, root = request.param, tmp_path_factory.mktemp(request.param)
    part = f"/{PARTS[name]}" if name == "mvtec" else ""
    make(name, root / "raw")
    return name, root / "raw", prepare.prepare(name + part, root / "raw", root / "out")


def config(name, root, **fields):
    option = public.SETS[name].variant
    base = {"dataset": name, "data_dir": str(root), "validation_fraction": 0.25, "seed": 0}
    base |= {option: PARTS[name]} if option else {}
    return ml_collections.ConfigDict({**base, **fields})


@pytest.mark.parametrize("seed", [0, 1])
def test_records_hold_what_the_download_holds(prepared, seed):
    name, raw, folder = prepared
    # The output's root names the set as well as the folder of the records itself.
    root = folder.parents[2 if name in PARTS else 1]
    direct, again = (load_dataset(config(name, data, seed=seed)) for data in (raw, root))
    assert again.name == direct.name
    assert again.test_has_masks == direct.test_has_masks
    assert (again.stamp, again.notes[-1]) == (direct.stamp, "Read from prepared records.")
    for split in ("train", "validation", "test"):
        ids = [[entry.case_id for entry in getattr(data, split)] for data in (direct, again)]
        assert ids[0] == ids[1]
        for one, other in zip(getattr(direct, split), getattr(again, split), strict=True):
            want, got = one.load(), other.load()
            assert_array_equal(want.image, got.image, strict=True)
            assert (want.mask is None) == (got.mask is None)
            assert want.mask is None or (want.mask == got.mask).all()
            for field in ("label", "kind", "patient", "positions"):
                assert getattr(want, field) == getattr(got, field)
            for field in ("spacing_mm", "slice_axis"):
                assert getattr(want.geometry, field) == getattr(got.geometry, field)
            assert_array_equal(want.geometry.affine, got.geometry.affine)


def test_anybody_can_read_the_records(prepared):
    name, _, folder = prepared
    builder = tfds.builder_from_directory(folder)
    one = public.SETS[name]
    assert builder.info.name == name
    assert builder.info.citation.replace("\n", " ") == one.citation
    assert builder.info.redistribution_info.license == one.licence
    assert builder.info.homepage == one.homepage
    source = builder.as_data_source("train")
    example = source[0]
    assert example["image"].dtype == one.dtype
    assert example["image"].ndim == 3
    assert example["label"] == 0
    assert example["mask"].size == 0
    lines = [json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines()]
    counted = sum(line["num_records"] for line in lines if line["split"] == "train")
    assert len(source) == counted == builder.info.splits["train"].num_examples
    assert len(builder.as_data_source("train[:50%]")) < counted


def test_a_seed_changes_validation_but_no_test_split(prepared):
    name, raw, _ = prepared
    if name == "chestxray14":
        (raw / "test_list.txt").rename(raw / "away.txt")  # a split is drawn without it
    data = [load_dataset(config(name, raw, seed=seed)) for seed in range(4)]
    if name == "chestxray14":
        (raw / "away.txt").rename(raw / "test_list.txt")
    first, *others = ([entry.load() for entry in one.test] for one in data)
    for other in others:
        assert [case.case_id for case in other] == [case.case_id for case in first]
        assert all((a.image == b.image).all() for a, b in zip(first, other, strict=True))
    held_out = {tuple(entry.case_id for entry in one.validation) for one in data}
    assert (len(held_out) > 1) != public.SETS[name].own_validation


@pytest.mark.parametrize(
    ("kind", "wanted", "fields", "found"),
    [
        ("jsrt", "busi", {}, "records of jsrt; expected busi"),
        ("lgg/all", "lgg", {}, "records of lgg/all; expected lgg/flair"),
        ("mood/abdomen", "mood", {}, "records of mood/abdomen; expected mood/brain"),
        ("mvtec/nut", "mvtec", {"category": "bolt"}, "records of mvtec/nut; expected mvtec/bolt"),
    ],
)
def test_records_of_another_set_or_part_are_refused(tmp_path, kind, wanted, fields, found):
    make(kind.partition("/")[0], tmp_path / "raw")
    folder = prepare.prepare(kind, tmp_path / "raw", tmp_path / "out")
    with pytest.raises(InputError, match=rf"1\.0\.0: found {found}\. Point data_dir"):
        load_dataset(config(wanted, folder, **fields))


def test_records_need_no_part_to_be_named(tmp_path):
    folder = prepare.prepare("mvtec/nut", layouts.mvtec(tmp_path / "raw"), tmp_path / "out")
    assert load_dataset(config("mvtec", folder, category="")).name == "nut"
    (folder / "dataset_info.json").write_text("[]")
    with pytest.raises(InputError, match=r"dataset_info\.json: found a damaged description"):
        load_dataset(config("mvtec", folder, category=""))


def brightness():
    """The smallest localiser: one weight on the image."""

    def loss(variables, key, batch):
        error = jnp.mean((variables["weight"] * batch.image - batch.label) ** 2)
        return error, {"mean": jnp.mean(batch.image), "label": jnp.mean(batch.label)}

    return Localiser(init=None, loss=loss, sample=None)


@pytest.fixture(scope="module")
def step():
    """One compiled training step: batch -> (change of the weight, losses)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "build_localiser", lambda config: brightness())
        options = training_config()
        options.equalise, options.task, options.num_patches = "none", "cutpaste", 1
        options.source_jitter, options.warmup_steps = False, 0
        layout = parallel.plan(1, 4, devices=jax.local_devices()[:1])
        params = {"weight": np.float32(1.0)}
        state = {
            "key": jax.random.key_data(jax.random.key(2)),
            "params": params,
            "opt_state": train.build_optimizer(options).init(params),
            "bad": {"count": np.int32(0), "first": np.uint32(99)},
        }
        state = jax.tree.map(lambda a: np.asarray(a)[None], state)
        lifted = parallel.lift(train.build_step(options, layout), layout)

    def run(batch):
        batch = jax.tree.map(lambda a: np.asarray(a)[None], batch)
        new, losses = lifted(state, np.zeros(1, np.uint32), np.zeros(1, np.int32), batch)
        return float(new["params"]["weight"][0]) - 1, {k: float(v[0]) for k, v in losses.items()}

    return run


def test_records_train(prepared, step):
    name, raw, folder = prepared
    data, raw_train = load_dataset(config(name, folder)), load_dataset(config(name, raw)).train
    memory = SliceBank.build(data.train, image_size=16)
    stream = SliceBank.build(data.train, image_size=16, max_bytes=100)
    for number in range(3):
        one, other = (bank.batch(5, number, 4) for bank in (memory, stream))
        jax.tree.map(lambda a, b: assert_array_equal(a, b, strict=True), one, other)
        direct = SliceBank.build(raw_train, image_size=16).batch(5, number, 4)
        jax.tree.map(lambda a, b: assert_array_equal(a, b, strict=True), one, direct)
    assert (memory.notes, memory.case_ids) == (stream.notes[:-1], stream.case_ids)
    batch = stream.batch(5, 0, 4)
    if name != "lidc":
        # The step's first act on any type, done here so that it is not compiled for each.
        batch = jax.tree.map(np.float32, batch)
    change, losses = step(batch)
    assert np.isfinite(change)
    assert change != 0
    assert 0 < losses["mean"] < 1
    assert losses["label"] > 0


@pytest.fixture
def films(tmp_path):
    return layouts.jsrt(tmp_path / "raw", SMALL)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_stopped_preparation_goes_on(tmp_path, films, monkeypatch):
    whole = contents(prepare.prepare("jsrt", films, tmp_path / "whole"))
    read, seen = jsrt.read_film, []

    def stop_at_the_sixth(path):
        seen.append(path.stem)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(jsrt, "read_film", stop_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare("jsrt", films, tmp_path / "out")
    left = tmp_path / "out" / "jsrt"
    assert [path.name for path in left.iterdir() if path.is_dir()] == [".parts"]
    assert not list(left.rglob("*.partial"))
    finished = sorted((left / ".parts").glob("*.array_record"))
    assert len(finished) == 3
    # A finished part that the disk damaged is made again, and so is junk of a kill while moving.
    finished[0].write_bytes(b"x" + finished[0].read_bytes()[1:])
    (left / "incomplete.ABC_1.0.0").mkdir()
    seen.clear()
    seen += ["counting on from ten"] * 10
    folder = prepare.prepare("jsrt", films, tmp_path / "out")
    # Nine films: five and the damaged part's two were read before, and three parts were whole.
    assert len(seen) == 10 + 9 - 3
    assert contents(folder) == whole
    assert {path.name for path in left.iterdir()} == {"1.0.0", ".lock"}


def test_other_films_start_anew(tmp_path, films, monkeypatch, capsys):
    stop_before_the_end(monkeypatch, films, tmp_path / "out")
    (films / "films" / "JPCNN001.IMG").unlink()
    folder = prepare.prepare("jsrt", films, tmp_path / "out")
    assert "starting anew" in capsys.readouterr().out
    assert "JPCNN001" not in (folder / "cases.jsonl").read_text()


def test_repaired_films_are_read_again(tmp_path, films, monkeypatch, capsys):
    whole = contents(prepare.prepare("jsrt", films, tmp_path / "whole"))
    normals = sorted((films / "films").glob("JPCNN*"))
    saved = {path: path.read_bytes() for path in normals}
    for path in normals:
        path.write_bytes(b"short")
    with pytest.raises(InputError, match=r"0 usable patient.*skipped JPCNN.*Repair"):
        prepare.prepare("jsrt", films, tmp_path / "out")
    for path, data in saved.items():
        path.write_bytes(data)
    read, seen = jsrt.read_film, []
    monkeypatch.setattr(jsrt, "read_film", lambda path: (seen.append(path.stem), read(path))[1])
    assert contents(prepare.prepare("jsrt", films, tmp_path / "out")) == whole
    # All but the part of the test split that holds two nodules.
    assert len(seen) == 9 - 2
    assert "anew" not in capsys.readouterr().out


def stop_before_the_end(monkeypatch, films, output):
    """Leaves finished parts behind."""

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "check_parts", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare("jsrt", films, output)


def test_a_film_that_was_replaced_is_read_again(tmp_path, films, monkeypatch):
    stop_before_the_end(monkeypatch, films, tmp_path / "out")
    path = films / "films" / "JPCNN002.IMG"
    path.write_bytes(bytes(path.stat().st_size))
    os.utime(path, ns=(0, 0))
    again = prepare.prepare("jsrt", films, tmp_path / "out")
    assert contents(again) == contents(prepare.prepare("jsrt", films, tmp_path / "whole"))


def test_a_corrected_table_starts_anew(tmp_path, films, monkeypatch, capsys):
    stop_before_the_end(monkeypatch, films, tmp_path / "out")
    table = films / "CLNDAT_EN.txt"
    table.write_bytes(table.read_bytes().replace(b"JPCLN001.IMG\t5", b"JPCLN001.IMG\t4"))
    os.utime(table, ns=(0, 0))
    folder = prepare.prepare("jsrt", films, tmp_path / "out")
    assert "other cases, tables or source; starting anew" in capsys.readouterr().out
    assert '"subtlety 4"' in (folder / "cases.jsonl").read_text()


def test_several_processes_make_the_same_files(tmp_path):
    layouts.head_ct(tmp_path / "raw")
    one, two = (
        prepare.prepare("head_ct", tmp_path / "raw", tmp_path / str(n), processes=n) for n in (1, 2)
    )
    assert contents(one) == contents(two)


def test_a_beam_pipeline_makes_the_same_files(tmp_path):
    pytest.importorskip("apache_beam", reason="Apache Beam is an extra of its own")
    layouts.head_ct(tmp_path / "raw")
    one, two = (
        prepare.prepare("head_ct", tmp_path / "raw", tmp_path / name, beam_options=options)
        for name, options in (("pool", None), ("beam", ["--runner=DirectRunner"]))
    )
    assert contents(one) == contents(two)
    (tmp_path / "beam" / "head_ct" / "1.0.0").rename(tmp_path / "old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "ArrayRecordWriter", None)
        with pytest.raises(InputError, match=r"the Beam pipeline: found a failure .*not callable"):
            prepare.prepare("head_ct", tmp_path / "raw", tmp_path / "beam", beam_options=[])


def test_beam_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    layouts.head_ct(tmp_path / "raw")
    with pytest.raises(InputError, match=r"no apache-beam.*pip install 'caal_jax\[beam\]'"):
        prepare.prepare("head_ct", tmp_path / "raw", tmp_path / "out", beam_options=[])


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 1, 1), "uint8"), ((8, 15, 1), "uint8"), ((130, 127, 3), "int16"), ((5, 7, 1), "float32")],
)
def test_a_record_is_what_the_library_would_write(shape, dtype):
    image = np.arange(np.prod(shape)).astype(dtype).reshape(shape)
    case = Case("a", image, Geometry((0.5, 1.5)), mask=image[..., 0] > 2, label=1, kind="dent")
    (example,) = records.case_examples(case, dtype)
    features = records.record_features(dtype)
    library = ExampleSerializer(features.get_serialized_info())
    want = library.get_tf_example(features.encode_example(example))
    assert type(want).FromString(records.record_serialiser(dtype)(example)) == want


def test_bad_cases_are_skipped_and_counted(tmp_path, films):
    (films / "films" / "JPCNN002.IMG").write_bytes(b"short")
    (films / "films" / "JPCNN003.IMG").unlink()
    (films / "films" / "JPCNN003.IMG").symlink_to("nowhere")
    folder = prepare.prepare("jsrt", films, tmp_path / "out")
    data = load_dataset(config("jsrt", folder))
    message = "2 cases were skipped in preparation, the first: JPCNN002 ("
    assert any(note.startswith(message) for note in data.notes)
    for path in (films / "films").glob("JPCNN*"):
        path.write_bytes(b"short")
    with pytest.raises(InputError, match=r"0 usable patient.*skipped JPCNN"):
        prepare.prepare("jsrt", films, tmp_path / "other")


def test_damage_is_told(tmp_path, films, capsys):
    folder = prepare.prepare("jsrt", films, tmp_path / "out")
    assert prepare.prepare("jsrt", films, tmp_path / "out") == folder
    assert "every checksum agrees" in capsys.readouterr().out
    shard = next(folder.glob("*train*00000-of*"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(InputError, match="another checksum"):
        prepare.prepare("jsrt", films, tmp_path / "out")
    shard.write_bytes(data[:-1])
    with pytest.raises(InputError, match=rf"found {len(data) - 1} bytes; expected {len(data)}"):
        load_dataset(config("jsrt", folder))
    shard.unlink()
    with pytest.raises(InputError, match=r"an incomplete folder.*Prepare it again"):
        load_dataset(config("jsrt", folder))


def test_a_changed_source_is_told(tmp_path, films, capsys):
    (films / ".hidden").touch()
    with zipfile.ZipFile(tmp_path / "jsrt.zip", "w") as archive:
        for path in films.rglob("*.*"):
            archive.write(path, path.relative_to(films))
    # Into the folder of the source, where the records are no part of it.
    folder = prepare.prepare("jsrt", films, films)
    os.utime(tmp_path / "jsrt.zip", ns=(0, 0))

    def told(source):
        before = contents(folder)
        capsys.readouterr()
        assert prepare.prepare("jsrt", source, films) == folder
        assert contents(folder) == before
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].endswith("every checksum agrees")
        assert len(lines) == 1 or lines[-1].startswith(f"To make them anew, remove {folder}")
        return "".join(lines[1:-1])

    assert told(films) == told(tmp_path / "jsrt.zip") == ""
    table = films / "CLNDAT_EN.txt"
    made_ns = (folder / "dataset_info.json").stat().st_mtime_ns
    os.utime(table, ns=(made_ns + 1, made_ns + 1))
    assert f"but 1 files are newer than they are, such as {table}." in told(films)
    layouts.film("x", SMALL).tofile(films / "JPCNN093.IMG")
    assert f"but {films} holds other files than those" in told(films)
    with zipfile.ZipFile(tmp_path / "jsrt.zip", "a") as archive:
        archive.writestr("JPCNN093.IMG", "x")
    assert "jsrt.zip holds other files than those" in told(tmp_path / "jsrt.zip")


def test_skipped_cases_of_finished_records_are_told(tmp_path, films, capsys):
    (films / "films" / "JPCNN002.IMG").write_bytes(b"short")
    folder = prepare.prepare("jsrt", films, tmp_path / "out")
    prepare.prepare("jsrt", films, tmp_path / "out")
    said = capsys.readouterr().out
    assert "but 1 cases were left out that may be readable now." in said
    assert f"remove {folder} and repeat" in said


def test_every_file_has_a_checksum(tmp_path, films):
    folder = prepare.prepare("jsrt", films, tmp_path / "out")
    for path in folder.iterdir():
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(InputError, match=rf"{path.name}: found (another|no) checksum"):
            prepare.prepare("jsrt", films, tmp_path / "out")
        path.write_bytes(data)
    (folder / "features.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot be opened \(JSONDecodeError.*Prepare it again"):
        load_dataset(config("jsrt", folder)).train[0].load()
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(InputError, match=r"SHA256SUMS: found no checksums .*No such file"):
        prepare.prepare("jsrt", films, tmp_path / "out")


def test_the_binary_needs_a_name_and_a_source_alone(tmp_path):
    layouts.head_ct(tmp_path / "raw")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def run(source):
        command = ["-m", "caal_jax.data.prepare", "--processes=1", "--dataset=head_ct", "--source"]
        return subprocess.run(
            [sys.executable, *command, source],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment,
        )

    done, folder = run("raw"), Path("records", "head_ct", "1.0.0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"Head CT: train with --config.data_dir={folder}"
    assert load_dataset(config("head_ct", tmp_path / folder)).name == "Head CT"
    done = run("gone")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: source gone: found nothing; expected")


def test_what_cannot_be_prepared(tmp_path, films):
    out = tmp_path / "out"
    for name, source, message in [
        ("jsr", films, "dataset: found 'jsr'; expected mood, jsrt"),
        ("folder", films, r"head_ct\. .*own images \(folder\) .* without preparation"),
        ("jsrt/brain", films, "expected jsrt. It has no parts"),
        ("jsrt", tmp_path / "gone", r"found nothing; expected the public download\. Get it at"),
    ]:
        with pytest.raises(InputError, match=message):
            prepare.prepare(name, source, out)
    with (
        files.lock(out / "jsrt"),
        pytest.raises(InputError, match="another process at work"),
    ):
        prepare.prepare("jsrt", films, out)


@pytest.mark.parametrize("name", list(public.SETS))
def test_litter_changes_nothing(tmp_path, name):
    make(name, tmp_path)
    wanted = ids_and_first(load_dataset(config(name, tmp_path)))
    for folder in (tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())):
        (folder / "round").symlink_to(tmp_path, target_is_directory=True)
        (folder / "self.png").symlink_to("self.png")
        for suffix in ("dcm", "xml"):
            (folder / f"gone.{suffix}").symlink_to(f"nowhere.{suffix}")
            (folder / f"._0.{suffix}").write_bytes(b"left by another system")
        os.close(os.open(os.fsencode(folder) + b"/caf\xe9.txt", os.O_CREAT))
    assert ids_and_first(load_dataset(config(name, tmp_path))) == wanted


def ids_and_first(data):
    splits = (data.train, data.validation, data.test)
    ids = [[entry.case_id for entry in split] for split in splits]
    return ids, [split[0].load().image.tobytes() for split in splits]


@pytest.mark.parametrize(("name", "closed"), [("jsrt", "films"), ("lidc", "1.2.3")])
def test_a_closed_folder_is_not_left_out(tmp_path, monkeypatch, name, closed):
    make(name, tmp_path)
    scan = os.scandir

    def refuse(path):
        if Path(path).name == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=rf"{closed}: found a folder that cannot be opened"):
        load_dataset(config(name, tmp_path))


def test_whatever_cannot_be_opened_is_told(tmp_path):
    def refuse(root, **options):
        raise PermissionError(13, "Permission denied", f"{root}/a.png")

    one = dataclasses.replace(public.SETS["head_ct"], read=refuse)
    with pytest.raises(InputError, match=r"a\.png: found what cannot be opened \(Permission den"):
        one.dataset(tmp_path, validation_fraction=0, seed=0)


def test_a_name_that_is_no_text_becomes_one(tmp_path):
    layouts.mood(tmp_path)
    volumes = tmp_path / "brain" / "brain_train"
    for path in volumes.iterdir():
        path.rename(os.fsdecode(os.fsencode(path).replace(b"0000", b"caf\xe9")))
    folder = prepare.prepare("mood/brain", tmp_path, tmp_path / "out")
    data = load_dataset(config("mood", folder))
    case = data.train[0].load()
    assert {case.case_id[:-1], case.patient[:-1]} == {r"caf\xe9"}


def test_duplicate_ids_are_refused(tmp_path):
    layouts.mvtec(tmp_path)
    data = public.SETS["mvtec"].dataset(tmp_path / "nut", validation_fraction=0, seed=0)
    data.train.append(data.train[0])
    with pytest.raises(InputError, match=r"the train split: found 2 cases .*each case once"):
        prepare.make_plan(data)


def test_a_patient_on_two_sides_is_refused():
    def facts(*patients):
        return {"lines": [{"patient": patient} for patient in patients]}

    plan = [("train", 0, 0, 2), ("train", 1, 2, 3), ("test", 0, 0, 1)]
    prepare.check_parts(plan, [facts("a", "b"), facts("c"), facts("d")], [])
    with pytest.raises(InputError, match="splits train and test: found patient c in both"):
        prepare.check_parts(plan, [facts("a", "b"), facts("c"), facts("c")], [])


def test_a_full_disk_leaves_nothing_half_valid(tmp_path, films, monkeypatch):
    real = prepare.ArrayRecordWriter
    monkeypatch.setattr(prepare, "ArrayRecordWriter", lambda _, options: real("/dev/full", options))
    with pytest.raises(InputError, match=r"No space left on device.*finished parts are kept"):
        prepare.prepare("jsrt", films, tmp_path / "out")
    assert not (tmp_path / "out" / "jsrt" / "1.0.0").exists()


@pytest.mark.parametrize("full", ["part", "cases.jsonl", "link", "dataset_info.json"])
def test_a_full_disk_costs_no_finished_part(tmp_path, films, monkeypatch, full):
    whole = contents(prepare.prepare("jsrt", films, tmp_path / "whole"))
    write, writer, link, info = (
        files.write_text,
        prepare.ArrayRecordWriter,
        os.link,
        tfds.core.DatasetInfo.write_to_directory,
    )
    calls = []

    def run_out(name, path):
        calls.extend([name] * (name == full))
        if name == full and (name != "link" or len(calls) == 2):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def third_to_full(path, options):
        calls.append("part")
        return writer("/dev/full" if len(calls) == 3 else path, options)

    with monkeypatch.context() as patch:
        if full == "part":
            patch.setattr(prepare, "ArrayRecordWriter", third_to_full)
        patch.setattr(files, "write_text", lambda p, t: (run_out(Path(p).name, p), write(p, t)))
        patch.setattr(prepare, "link_or_copy", lambda p, t: (run_out("link", t), link(p, t)))
        patch.setattr(
            tfds.core.DatasetInfo,
            "write_to_directory",
            lambda *args: (run_out("dataset_info.json", args[1]), info(*args)),
        )
        with pytest.raises(InputError, match=r"No space left on device.*finished parts are kept"):
            prepare.prepare("jsrt", films, tmp_path / "out")
    parts = tmp_path / "out" / "jsrt" / ".parts"
    assert len(list(parts.glob("*.array_record"))) == (2 if full == "part" else 5)
    if full != "part":
        monkeypatch.setattr(prepare, "ArrayRecordWriter", None)  # nothing is left to write
    assert contents(prepare.prepare("jsrt", films, tmp_path / "out")) == whole
    assert {path.name for path in parts.parent.iterdir()} == {"1.0.0", ".lock"}


def test_parts_are_copied_where_there_are_no_hard_links(tmp_path, films, monkeypatch):
    whole = contents(prepare.prepare("jsrt", films, tmp_path / "whole"))

    def refuse(path, target):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(target))

    monkeypatch.setattr(os, "link", refuse)
    assert contents(prepare.prepare("jsrt", films, tmp_path / "out")) == whole


def test_what_a_kill_left_beside_a_finished_folder_goes(tmp_path, films):
    folder = prepare.prepare("jsrt", films, tmp_path / "out")
    (folder.parent / ".parts").mkdir()
    prepare.prepare("jsrt", films, tmp_path / "out")
    assert {path.name for path in folder.parent.iterdir()} == {"1.0.0", ".lock"}


def test_archives_are_unpacked_once(tmp_path, films):
    want = contents(prepare.prepare("jsrt", films, tmp_path / "plain"))
    with zipfile.ZipFile(tmp_path / "jsrt.zip", "w") as archive:
        for path in films.rglob("*.*"):
            archive.write(path, path.relative_to(films))
    folder = prepare.prepare("jsrt", tmp_path / "jsrt.zip", tmp_path / "zip")
    assert contents(folder) == want
    with tarfile.open(tmp_path / "jsrt.tar.gz", "w:gz") as archive:
        archive.add(films, "x")
    folder = prepare.prepare("jsrt", tmp_path / "jsrt.tar.gz", tmp_path / "tar")
    assert contents(folder) == want
    assert {path.name for path in folder.parent.iterdir()} == {"1.0.0", ".lock"}


def test_a_replaced_archive_is_unpacked_anew(tmp_path, films, monkeypatch):
    path, table = tmp_path / "jsrt.zip", films / "CLNDAT_EN.txt"

    def pack():
        with zipfile.ZipFile(path, "w") as archive:
            for one in films.rglob("*.*"):
                archive.write(one, one.relative_to(films))

    pack()
    stop_before_the_end(monkeypatch, path, tmp_path / "out")
    num_bytes = path.stat().st_size
    table.write_bytes(table.read_bytes().replace(b"JPCLN001.IMG\t5", b"JPCLN001.IMG\t4"))
    pack()
    os.utime(path, ns=(0, 0))
    assert path.stat().st_size == num_bytes
    folder = prepare.prepare("jsrt", path, tmp_path / "out")
    assert '"subtlety 4"' in (folder / "cases.jsonl").read_text()
    assert {left.name for left in folder.parent.iterdir()} == {"1.0.0", ".lock"}


@pytest.mark.parametrize("kind", ["jsrt", "lgg/flair"])
def test_a_kill_while_unpacking_leaves_nothing(tmp_path, monkeypatch, kind):
    name = kind.partition("/")[0]
    make(name, tmp_path / "raw")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "raw", "a")

    def kill(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", kill)
        patch.setattr(archives.shutil, "rmtree", lambda *args, **options: None)
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare(kind, tmp_path / "a.tar", tmp_path / "out")
    folder = prepare.prepare(kind, tmp_path / "a.tar", tmp_path / "out")
    left = {path for path in (tmp_path / "out").rglob("*") if path.is_dir()}
    assert left == {folder, *folder.parents} & {*(tmp_path / "out").rglob("*")}


@pytest.mark.parametrize(
    ("size", "message"), [(2**63, "a damaged archive"), (-5, "the member big of -5 bytes")]
)
def test_sizes_that_no_file_has(tmp_path, size, message):
    member = tarfile.TarInfo("big")
    member.size = size
    (tmp_path / "bad.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(InputError, match=message):
        archives.unpack(tmp_path / "bad.tar", tmp_path / "in")


@pytest.mark.parametrize("packing", ["xz", "bz2"])
def test_other_packings_of_tar_files(tmp_path, monkeypatch, packing):
    data = bytes(range(256)) * 40
    path = tmp_path / f"good.tar.{packing}"
    with tarfile.open(path, f"w:{packing}") as archive:
        member = tarfile.TarInfo("in/a.bin")  # without this moment's time
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    assert archives.is_archive(path)
    assert (archives.unpack(path, tmp_path / "out") / "in/a.bin").read_bytes() == data
    packed = path.read_bytes()
    for number in (len(packed) // 2, len(packed) - 9):  # in the data, and in the checksums
        broken = bytearray(packed)
        broken[number] ^= 1
        for name, content in (("flip", broken), ("cut", packed[:number])):
            bad = tmp_path / f"{name}.tar.{packing}"
            bad.write_bytes(content)
            with pytest.raises(InputError, match="a damaged archive"):
                archives.unpack(bad, tmp_path / "bad")
    free = archives.shutil.disk_usage(tmp_path)._replace(free=len(data) - 1)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: free)
    with pytest.raises(InputError, match="10240 bytes once unpacked, with 10239 bytes free"):
        archives.unpack(path, tmp_path / "bad")
    assert not list(tmp_path.glob("bad*"))


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt"])
def test_members_that_leave_the_folder_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("good.txt", "good")
        archive.writestr(name, "bad")
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        archive.addfile(member)
    for suffix in ("zip", "tar"):
        with pytest.raises(InputError, match="which leads out of the folder"):
            archives.unpack(tmp_path / f"bad.{suffix}", tmp_path / "in")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tar", "bad.zip"]


def test_other_bad_archives(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(member)
    with pytest.raises(InputError, match="link, which is neither a file nor a folder"):
        archives.unpack(tmp_path / "link.tar", tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", "1" * 1000)
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "b.zip").write_bytes(data[:-30])
    (tmp_path / "b.tar.gz").write_bytes(data)
    for name in ("b.zip", "b.tar.gz"):
        with pytest.raises(InputError, match="a damaged archive"):
            archives.unpack(tmp_path / name, tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "lzma.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", "1" * 1000)
    data = bytearray((tmp_path / "lzma.zip").read_bytes())
    data[40] = 255  # the first byte of the stream
    (tmp_path / "lzma.zip").write_bytes(data)
    for name, members in (("both", ["a", "a/b"]), ("long", ["x" * 300])):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for member in members:
                archive.writestr(member, "1")
    for name in ("lzma", "both", "long"):
        with pytest.raises(InputError, match="a damaged archive"):
            archives.unpack(tmp_path / f"{name}.zip", tmp_path / "in")
    assert not list(tmp_path.glob("in*"))
    free = archives.shutil.disk_usage(tmp_path)._replace(free=999)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: free)
    with pytest.raises(InputError, match="1000 bytes once unpacked, with 999 bytes free"):
        archives.unpack(tmp_path / "a.zip", tmp_path / "in")
    assert not (tmp_path / "in").exists()


def test_values_that_the_type_cannot_hold_are_refused(tmp_path):
    layouts.mvtec(tmp_path)
    layouts.put(tmp_path / "nut/train/good/000.png", layouts.picture(0, dtype=np.uint16))
    data = public.SETS["mvtec"].dataset(tmp_path / "nut", validation_fraction=0, seed=0)
    case = next(entry for entry in data.train if entry.case_id == "000").load()
    with pytest.raises(InputError, match="found values of type uint16; expected uint8"):
        list(records.case_examples(case, "uint8"))


def test_records_without_the_library(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"pip install 'caal_jax\[records\]'"):
        records.tensorflow_datasets()
