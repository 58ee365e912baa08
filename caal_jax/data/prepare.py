"""The binary that turns a downloaded data set into records that load fast and can be checked.

python -m caal_jax.data.prepare --dataset=jsrt --source=DIR [--output=records] [--processes=N]

--dataset=NAME or NAME/PART, such as mood/abdomen, mvtec/hazelnut, chestxray14/F or lgg/all.
--source: the folder of the public download, or a zip or tar file of it.
--output: the folder that gets NAME[/PART]/VERSION; unless it is given, records, where you are.
A stopped run goes on where it was; a finished one is checked against its checksums, and compared
with the source by the names, sizes and times of its files.
On a cluster, --beam_pipeline_options=runner=FlinkRunner,... has an Apache Beam pipeline read the
cases (pip install 'caal_jax[beam]') where all machines see both folders under the same paths. Only
Beam's local runners have been tried.
"""

import concurrent.futures
import contextlib
import errno
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import tensorflow_datasets as tfds
from absl import app, flags, logging
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from caal_jax import files
from caal_jax.data.archives import is_archive, listing, unpack
from caal_jax.data.public import find_set
from caal_jax.data.records import (
    ABOUT,
    CASES,
    INFO,
    REMEDY,
    SUMS,
    VERSION,
    case_examples,
    case_line,
    record_features,
    record_serialiser,
)
from caal_jax.data.split import MIN_TRAIN, SPLITS
from caal_jax.errors import InputError

# A part is what a stopped run loses at most, and one file in the end.
CASES_PER_PART, MAX_PARTS = 16, 1024
PARTS = ".parts"
TABLES = (".csv", ".csv.gz", ".txt")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


class PublicBuilder(tfds.core.DatasetBuilder, skip_registration=True):
    """TFDS builder of any `PublicSet`: array_record files, without TensorFlow.

    Parts of the data set are written by several processes into `.parts` beside the final folder,
    each whole or not at all. When all are there, the final folder gets links to them, so that
    whatever fails until it stands under its name costs none.
    """

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, public_set, variant, *, source, output, processes, beam_options):
        self.name, self._set = public_set.name, public_set
        self._job = (public_set.name, variant, str(source))
        self._processes, self._beam_options = processes, beam_options
        config = tfds.core.BuilderConfig(name=variant, version=VERSION) if variant else None
        super().__init__(data_dir=output, config=config)
        self.info.set_file_format("array_record")
        self.parts = Path(self.data_path).with_name(PARTS)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._set.description,
            homepage=self._set.homepage,
            license=self._set.licence,
            citation=self._set.citation,
            features=record_features(self._set.dtype),
            disable_shuffling=True,
        )

    def _download_and_prepare(self, dl_manager, download_config=None):
        """Called by `download_and_prepare` with `data_dir` being a folder yet to be renamed."""
        del dl_manager, download_config  # nothing is downloaded
        dataset = load(*self._job)
        plan = make_plan(dataset)
        claim_parts(self.parts, self._job, dataset)
        done = write_parts(dataset, plan, self.parts, lambda todo: self._write(dataset, todo))
        skipped = [message for facts in done for message in facts["skipped"]]
        check_parts(plan, done, skipped)
        target = Path(self.data_dir)
        splits, lines, shards, sums, sizes = [], [], {}, {}, {}
        for split in SPLITS:
            own = [(part, facts) for part, facts in zip(plan, done, strict=True)]
            own = [(part, facts) for part, facts in own if part[0] == split and facts["lines"]]
            if not own:
                continue
            template, first = self._get_filename_template(split), 0
            for shard, (part, facts) in enumerate(own):
                name = Path(template.sharded_filepath(shard_index=shard, num_shards=len(own))).name
                shards[name] = part_file(self.parts, part)
                sums[name], sizes[name] = facts["sha256"], facts["num_bytes"]
                for line in facts["lines"]:
                    lines.append({"split": split, "first_record": first, **line})
                    first += line["num_records"]
            splits.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[facts["num_records"] for _, facts in own],
                    num_bytes=sum(facts["num_bytes"] for _, facts in own),
                    filename_template=template,
                )
            )
        notes = list(dataset.notes)
        if skipped:
            notes.append(
                f"{len(skipped)} cases were skipped in preparation, the first: {skipped[0]}"
            )
        about = {
            "name": dataset.name,
            "source": source_digest(Path(self._job[2])),
            "stamp": dataset.stamp,
            "test_has_masks": dataset.test_has_masks,
            "notes": notes,
            "skipped": skipped,
            "sizes": sizes,
        }
        files.write_text(target / CASES, "".join(json.dumps(line) + "\n" for line in lines))
        files.write_text(target / ABOUT, json.dumps(about, indent=1))
        self.info.set_splits(tfds.core.SplitDict(splits))
        # The base class writes the same once more; here it is for the checksums.
        self.info.download_size = 0
        self.info.write_to_directory(target)
        sums |= {path.name: sha256(path) for path in sorted(target.iterdir())}
        files.write_text(target / SUMS, "".join(f"{s}  {name}\n" for name, s in sums.items()))
        for name, path in shards.items():
            link_or_copy(path, target / name)

    def _write(self, dataset, todo):
        if self._beam_options is None:
            return run_parts(self._job, dataset, todo, self.parts, self._processes)
        from caal_jax.data.beam import run_in_beam

        return run_in_beam(self._job, todo, self.parts, options=self._beam_options)

    def _make_download_manager(self, **options):
        """A stand-in: the download is there already."""
        return SimpleNamespace(downloaded_size=0)

    def _log_download_bytes(self):
        """Silent: nothing is downloaded."""

    _log_download_done = _log_download_bytes

    def _as_dataset(self, **options):
        """Abstract in the base class."""
        raise NotImplementedError("as_dataset needs TensorFlow; use as_data_source")


def prepare(name, source, output, *, processes=1, beam_options=None):
    """Prepares a public data set; returns the folder of its records.

    name: "jsrt", or with the part of the set "mood/abdomen". source: the folder of the download,
    or a zip or tar file, which is unpacked below `output`. If the records are there, they are
    checked instead. beam_options: options of an Apache Beam pipeline, such as
    ["--runner=DirectRunner"], which then does the reading instead of `processes`.
    Raises: InputError for anything unusable; what was finished before is kept.
    """
    name, _, variant = name.partition("/")
    public_set, source, output = find_set(name), Path(source), Path(output)
    if variant and not public_set.variant:
        raise InputError(
            "dataset", found=f"{name}/{variant}", expected=name, remedy="It has no parts."
        )
    variant = variant or public_set.default
    if not source.exists():
        raise InputError(
            f"source {source}",
            found="nothing",
            expected="the public download",
            remedy=f"Get it at {public_set.homepage}",
        )
    inner, folder = source, output / name / variant / VERSION
    if is_archive(source):
        state = source.stat()
        inner = folder.with_name(f".unpacked-{state.st_size}-{state.st_mtime_ns}-{source.name}")
    leftovers = [folder.with_name(PARTS)] + [inner] * (inner != source)
    if folder.is_dir():
        verify(folder)
        print(f"{folder}: already prepared; every checksum agrees")
        tell_changes(folder, source)
        remove(leftovers)  # of a run that was killed when its folder stood
        return folder
    builder = PublicBuilder(
        public_set,
        variant,
        source=inner,
        output=output,
        processes=processes,
        beam_options=beam_options,
    )
    try:
        with files.lock(folder.parent):
            # Of runs that were killed, or stopped before their archive was replaced.
            old = {*folder.parent.glob("incomplete.*"), *folder.parent.glob(".unpacked-*")}
            remove(old - {inner})
            if inner != source:
                unpack(source, inner)
            builder.download_and_prepare()
            remove(leftovers)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise InputError(
            f"output {output}",
            found=error.strerror,
            expected="a folder with space that can be written to",
            remedy="Make room and repeat the command; finished parts are kept.",
        ) from error
    return folder


def tell_changes(folder, source):
    """Prints what a source has that is not in finished records, which are left as they are."""
    about = json.loads((folder / ABOUT).read_text())
    made_ns = (folder / INFO).stat().st_mtime_ns
    newer = [path for path, _, changed_ns in file_states(source) if changed_ns > made_ns]
    changes = []
    if about.get("source") not in (None, source_digest(source)):
        changes.append(f"{source} holds other files than those that they were made of")
    elif newer:
        changes.append(f"{len(newer)} files are newer than they are, such as {newer[0]}")
    if about["skipped"]:
        changes.append(f"{len(about['skipped'])} cases were left out that may be readable now")
    for change in changes:
        print(f"warning: the records are as before, but {change}.")
    if changes:
        print(f"To make them anew, remove {folder} and repeat the command.")


def source_digest(source):
    """A checksum of the names and sizes of a download's files: the same for its archive."""
    if is_archive(source):
        found = [
            (files.printable(name), num_bytes)
            for name, num_bytes in listing(source)
            if not any(part.startswith(".") for part in Path(name).parts)
        ]
    else:
        found = [(name, num_bytes) for name, num_bytes, _ in file_states(source)]
    # Names alone: archives differ in the folders around them.
    names = sorted((Path(name).name, num_bytes) for name, num_bytes in found)
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def remove(folders):
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def load(name, variant, source):
    """The `DataSet` of a job; validation patients are drawn later if that is up to a config."""
    return find_set(name).dataset(source, variant=variant, validation_fraction=0, seed=0)


def make_plan(dataset):
    """(split, number, first, last) of every part: the cases first to last - 1 of a split."""
    entries = {split: getattr(dataset, split) for split in SPLITS}
    for split, cases in entries.items():
        (most,) = Counter(entry.case_id for entry in cases).most_common(1) or [("", 0)]
        if most[1] > 1:
            raise InputError(
                f"the {split} split",
                found=f"{most[1]} cases {most[0]}",
                expected="each case once",
                remedy="Remove the others.",
            )
    size = max(CASES_PER_PART, -(-sum(map(len, entries.values())) // MAX_PARTS))
    return [
        (split, number, first, min(first + size, len(cases)))
        for split, cases in entries.items()
        for number, first in enumerate(range(0, len(cases), size))
    ]


def claim_parts(folder, job, dataset):
    """Makes the folder of parts, or empties one that was begun with other cases or tables."""
    ids = {split: [entry.case_id for entry in getattr(dataset, split)] for split in SPLITS}
    # What only tables say of a case, such as its boxes, is not in the files that it is read from.
    tables = [one for one in file_states(Path(job[2])) if one[0].lower().endswith(TABLES)]
    wanted = hashlib.sha256(json.dumps([job, ids, tables]).encode()).hexdigest()
    stamp = folder / "job"
    if stamp.is_file() and stamp.read_text() != wanted:
        print(f"{folder}: begun with other cases, tables or source; starting anew", flush=True)
        shutil.rmtree(folder)
    files.folder(folder)
    files.write_text(stamp, wanted)


def file_states(path):
    """(path, bytes, time of the last change in ns) of a file or of all below a folder, sorted.

    Hidden files are left out, as systems add them to folders that are looked at, and so are records
    that were written into the folder.
    """
    paths = [path]
    if path.is_dir():
        paths = []
        for parent, folders, names in os.walk(path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            if SUMS in names and INFO in names:
                continue
            paths += [Path(parent, name) for name in names if not name.startswith(".")]
    found = []
    for one in paths:
        with contextlib.suppress(OSError):  # a link to nowhere
            state = one.stat()
            found.append((files.printable(one), state.st_size, state.st_mtime_ns))
    return sorted(found)


def entries_of(dataset, part):
    split, _, first, last = part
    return getattr(dataset, split)[first:last]


def files_stamp(entries):
    """A checksum of names, sizes and times of the files that entries are read from."""
    states = [file_states(path) for entry in entries for path in entry.paths]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


def link_or_copy(path, target):
    """A second name for a file, or a copy where the file system has no hard links."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def part_file(folder, part):
    return folder / f"{part[0]}-{part[1]:05d}.array_record"


def write_parts(dataset, plan, folder, run):
    """What is known of each part, in order, after `run` has written those that are not there.

    A part whose files have changed is written again, and one with skipped cases, since they may
    be readable now. run: from a list of parts to (part, facts) of each as it is finished.
    """
    known = {part: read_part(folder, part) for part in plan}
    for part, facts in known.items():
        if facts and (facts["skipped"] or facts["files"] != files_stamp(entries_of(dataset, part))):
            known[part] = None
    todo = [part for part in plan if known[part] is None]
    total = sum(last - first for _, _, first, last in plan)
    left = sum(last - first for _, _, first, last in todo)
    with tqdm(
        total=total, initial=total - left, desc=f"preparing {dataset.name}", unit="case"
    ) as bar:
        for part, facts in run(todo):
            known[part] = facts
            bar.update(part[3] - part[2])
    return [known[part] for part in plan]


def run_parts(job, dataset, todo, folder, processes):
    """Yields (part, facts) as parts are finished, in this process or in several others."""
    if processes == 1 or len(todo) < 2:
        for part in todo:
            yield part, write_part(dataset, job[0], part, folder)
        return
    # Forked children of a process with threads can hang.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(processes, len(todo)), context) as pool:
        futures = {pool.submit(write_loaded, part, job, folder): part for part in todo}
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise InputError(
                f"source {job[2]}",
                found="a process that was killed, probably for want of memory",
                expected="room for one case per process",
                remedy="Repeat with a smaller --processes; finished parts are kept.",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


# The entries of a data set cannot be sent to other processes, which load it anew, once each.
_load_once = functools.lru_cache(maxsize=1)(load)


def write_loaded(part, job, folder):
    """As `write_part`, in a process that has nothing but the names of things."""
    return write_part(_load_once(*job), job[0], part, folder)


def write_part(dataset, name, part, folder):
    """Writes the records of a part, and then what is known of them, which makes it valid."""
    entries = entries_of(dataset, part)
    stamp = files_stamp(entries)  # before they are read
    path, dtype = part_file(folder, part), find_set(name).dtype
    serialise = record_serialiser(dtype)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    lines, skipped, count = [], [], 0
    try:
        writer = ArrayRecordWriter(str(partial), writing(dtype))
        for entry in entries:
            try:
                case = entry.load()
                line = case_line(case)
                records = [serialise(example) for example in case_examples(case, dtype)]
            except InputError as error:
                skipped.append(f"{entry.case_id} ({error})")
                continue
            for record in records:
                writer.write(record)
            lines.append({**line, "dtype": dtype, "num_records": len(records)})
            count += len(records)
        writer.close()
        os.replace(partial, path)
    except RuntimeError as error:  # all that the writer tells of the system's error is its text
        for code in NO_ROOM:
            if os.strerror(code) in str(error):
                raise OSError(code, os.strerror(code), str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)
    facts = {
        "files": stamp,
        "lines": lines,
        "skipped": skipped,
        "num_records": count,
        "num_bytes": path.stat().st_size,
        "sha256": sha256(path),
    }
    # In one go, unlike all else: what a crash leaves of it does not parse, or the checksum differs.
    path.with_suffix(".json").write_text(json.dumps(facts))
    return facts


def writing(dtype):
    """Options of a file in which each record can be read alone.

    Photographs and films of 8 bits shrink by a sixth only, and reading them should cost nothing;
    volumes with their empty background shrink to a half or less.
    """
    return "group_size:1," + ("uncompressed" if dtype == "uint8" else "zstd:1")


def read_part(folder, part):
    """What is known of a finished part, or None if it is not there or not what it was."""
    path = part_file(folder, part)
    try:
        facts = json.loads(path.with_suffix(".json").read_text())
        return facts if sha256(path) == facts["sha256"] else None
    except (OSError, ValueError):
        return None


def check_parts(plan, done, skipped):
    """Refuses a set without two training patients, or with a patient on two sides of a split."""
    patients = {split: set() for split in SPLITS}
    for (split, *_), facts in zip(plan, done, strict=True):
        patients[split] |= {line["patient"] for line in facts["lines"]}
    if len(patients["train"]) < MIN_TRAIN:
        raise InputError(
            "training cases",
            found=f"{len(patients['train'])} usable patient(s)"
            + (f"; skipped {skipped[0]}" if skipped else ""),
            expected=f"at least {MIN_TRAIN}",
            remedy="Repair the skipped cases.",
        )
    for one, other in itertools.combinations(SPLITS, 2):
        if shared := patients[one] & patients[other]:
            raise InputError(
                f"the splits {one} and {other}",
                found=f"patient {min(shared)} in both",
                expected="each patient on one side",
                remedy="Correct the tables of the download.",
            )


def verify(folder):
    """Compares every file with its checksum.

    Raises: InputError for one that differs, and where the checksums are missing or cut short.
    """
    path = folder / SUMS
    try:
        sums = dict(line.split("  ", 1)[::-1] for line in path.read_text().splitlines())
    except (OSError, ValueError) as error:
        raise _unverified(folder, path, f"no checksums ({error})") from error
    if missing := {CASES, ABOUT} - set(sums):
        raise _unverified(folder, path, f"no checksum of {min(missing)}")
    for name, wanted in sums.items():
        path = folder / name
        if not path.is_file() or sha256(path) != wanted:
            found = "another checksum" if path.is_file() else "no such file"
            raise _unverified(folder, path, found)


def _unverified(folder, path, found):
    expected = "a checksum of every file" if path.name == SUMS else f"what {SUMS} says"
    return InputError(path, found=found, expected=expected, remedy=f"Remove {folder}. {REMEDY}")


def sha256(path):
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; options start with --")
    logging.set_verbosity(logging.ERROR)  # TFDS tells every step of its work
    beam = flags.FLAGS.beam_pipeline_options
    try:
        folder = prepare(
            flags.FLAGS.dataset,
            flags.FLAGS.source,
            flags.FLAGS.output,
            processes=flags.FLAGS.processes,
            beam_options=None if beam is None else [f"--{option}" for option in beam],
        )
    except InputError as error:
        sys.exit(f"error: {error}")
    about = json.loads((folder / ABOUT).read_text())
    for note in about["notes"]:
        print(f"- {note}")
    print(f"{about['name']}: train with --config.data_dir={folder}")


if __name__ == "__main__":
    # Defined here: binaries that import each other have options of the same names.
    flags.DEFINE_string("dataset", None, "NAME or NAME/PART of a public data set.")
    flags.DEFINE_string("source", None, "The folder (or zip, tar) of the public download.")
    flags.DEFINE_string("output", "records", "The folder that gets NAME[/PART]/VERSION.")
    flags.DEFINE_integer("processes", os.cpu_count(), "How many read at once.", lower_bound=1)
    flags.DEFINE_list("beam_pipeline_options", None, "Of Apache Beam, as TFDS takes them.")
    flags.mark_flags_as_required(["dataset", "source"])
    app.run(main)
