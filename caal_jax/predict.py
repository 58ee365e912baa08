"""The binary for new scans: maps, confidence and scores from a finished run.

python -m caal_jax.predict --workdir=DIR --input=FILE_OR_FOLDER --output=DIR
"""

import hashlib
import json
import sys
import time
from collections import Counter
from pathlib import Path

from absl import app, flags, logging
from tqdm import tqdm

from caal_jax import files, parallel, report
from caal_jax.confidence_results import REGION_COLUMNS, region_rows
from caal_jax.data import is_phantom, read_scan
from caal_jax.data.readers import FORMATS, image_files, stem_of, without_masks
from caal_jax.data.writers import MAP_FORMATS, csv_text
from caal_jax.errors import InputError
from caal_jax.evaluate import write_maps
from caal_jax.localise import FinishedRun, read_config
from caal_jax.report.sprites import make_sprites

COLUMNS = ("file", "score", "score_std", "probability", "p_value", "verdict")


def predict(workdir, source, output, *, maps="auto"):
    """Localises anomalies in a file or in every supported file of a folder.

    Writes, per file, `<name>_anomaly` (calibrated probability) and `<name>_uncertainty` (epistemic,
    as a share of its largest value) in the file's own geometry, and `<name>.png` to look at.
    cases.jsonl gets a line per file as it is done: file, name, score, score_std, probability,
    p_value, verdict, the image's uncertainties, the regions that were found and seconds, or the
    error of a file that cannot be read, which is told and skipped. scores.csv and regions.csv (a
    line per region, with its place, size and confidence) follow at the end. Repeating the call
    after an interruption does only the files that are not done or have changed since.
    Files named `<image>_mask` or `<image>_mask_1` beside an image of a folder are left out.
    maps: one of `MAP_FORMATS`.
    Returns (rows of scores.csv, messages of the skipped).
    Raises: InputError if the run or the input is not there, if no file could be read, or if the
    output folder holds the results of another run.
    """
    source, output = Path(source), Path(output)
    run = FinishedRun.load(workdir)
    paths = list_inputs(source)
    names = output_names(paths, source)
    log = CaseLog(files.folder(output) / "cases.jsonl", of_run=f"{_fingerprint(workdir)} {maps}")
    rows, regions, skipped = [], [], []
    for path, name in zip(tqdm(paths, desc="localising", unit="file"), names, strict=True):
        shown = files.printable(str(path.relative_to(source) if path != source else path.name))
        identity = {"file": shown, "name": name, "stamp": _stamp(path)}
        line = log.done(identity)
        if line is None or not Path(f"{output / name}.png").is_file():
            line = identity | _localised(run, path, output / name, maps)
        log.add(line)
        if "error" in line:
            skipped.append(line["error"])
            tqdm.write(f"skipped: {line['error']}")
        else:
            rows.append(tuple(line[column] for column in COLUMNS))
            regions += line["regions"]
    log.finish()
    if not rows:
        raise InputError(
            source,
            found=f"{len(skipped)} file(s), none of them usable; the first: {skipped[0]}",
            expected="at least one readable image",
            remedy="Repair or convert the files.",
        )
    files.write_text(output / "scores.csv", csv_text(COLUMNS, rows))
    files.write_text(output / "regions.csv", csv_text(REGION_COLUMNS, regions))
    return rows, skipped


def _localised(run, path, stem, maps):
    """Writes the maps and the picture of one file; returns what cases.jsonl says about it."""
    began = time.monotonic()
    try:
        case = read_scan(path, run.config)
        found = run.predict(case)
    except InputError as error:
        return {"error": str(error)}
    write_maps(stem, found, case, maps=maps)
    sprites = make_sprites(found.image, None, found.anomaly, found.epistemic, budget_bytes=0)
    card = report.Card(
        case_id=case.case_id,
        kind="",
        label=None,
        score=found.score,
        probability=found.probability,
        verdict=found.verdict,
        uncertainty=found.score_std,
        error=None,
        sprites=sprites,
    )
    stamp = "learnt on phantom" if is_phantom(run.config) else ""
    report.case_picture(f"{stem}.png", report.gallery_item(card), stamp=stamp)
    scores = {column: getattr(found, column) for column in COLUMNS[1:]}
    scores |= {"uncertainty": found.uncertainty, "regions": region_rows(stem.name, found.regions)}
    return scores | {"seconds": round(time.monotonic() - began, 3)}


class CaseLog:
    """cases.jsonl: what is done, line by line, safe against a kill at any moment."""

    def __init__(self, path, *, of_run):
        """Raises `InputError` if the file holds the lines of another run."""
        self._path, self._head, self._lines = path, {"run": of_run}, []
        text = path.read_text() if path.is_file() else ""
        lines = [json.loads(line) for line in text.split("\n")[:-1]]  # a cut last line has no end
        if lines and lines[0] != self._head:
            raise InputError(
                path,
                found="the results of another run or another format of maps",
                expected="an empty folder, or results of this run to go on with",
                remedy="Choose another --output.",
            )
        self._done = {(line["file"], line["name"]): line for line in lines[1:]}
        self._write([self._head, *self._done.values()])

    def done(self, identity):
        """The line of a file that is unchanged and was localised, or None."""
        line = self._done.get((identity["file"], identity["name"]))
        same = line is not None and line["stamp"] == identity["stamp"] and "error" not in line
        return line if same else None

    def add(self, line):
        """Appends the line of a file, unless it is one that `done` gave."""
        self._lines.append(line)
        if self._done.get((line["file"], line["name"])) is not line:
            with self._path.open("a") as stream:
                stream.write(json.dumps(line) + "\n")

    def finish(self):
        """Leaves one line for each file that was added, in that order."""
        self._write([self._head, *self._lines])

    def _write(self, lines):
        files.write_text(self._path, "".join(json.dumps(line) + "\n" for line in lines))


def _stamp(path):
    """What changes when a file is replaced: [size, time of change in ns]."""
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]


def _fingerprint(workdir):
    data = [(Path(workdir) / name).read_bytes() for name in ("config.json", "decisions.json")]
    return hashlib.sha256(b"\n".join(data)).hexdigest()


def list_inputs(source):
    """The file itself, or the supported files of a folder. Raises `InputError` if there is none."""
    if source.is_file():
        return [source]
    paths = without_masks(image_files(source)) if source.is_dir() else []
    if not paths:
        raise InputError(
            source,
            found="an empty folder" if source.is_dir() else "nothing",
            expected=f"an image, a volume or a folder of them ({FORMATS})",
            remedy="Check --input.",
        )
    return paths


def output_names(paths, source):
    """One distinct, safe name per file, from its path below the source without the suffix."""
    below = [path.relative_to(source) if path != source else Path(path.name) for path in paths]
    return files.distinct_names([str(path.parent / stem_of(path)) for path in below])


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; options start with --")
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of its work at INFO
    parallel.cache_programs()
    given = flags.FLAGS
    try:
        if is_phantom(read_config(given.workdir)):
            print("note: this run has learnt phantoms, made-up images, and no real scans")
        rows, skipped = predict(given.workdir, given.input, given.output, maps=given.maps)
    except InputError as error:
        sys.exit(f"error: {error}")
    for row in rows[:20]:
        name, score, _, probability, _, verdict = row
        print(f"{verdict:9s} p={probability:.2f} score={score:.4f} {name}")
    if len(rows) > 20:
        print(f"... and {len(rows) - 20} more")
    verdicts = Counter(row[-1] for row in rows)
    told = ", ".join(f"{verdicts[word]} {word}" for word in ("abnormal", "normal", "abstain"))
    print(
        f"{len(rows)} localised ({told}), {len(skipped)} skipped: "
        f"{Path(given.output) / 'scores.csv'}"
    )


if __name__ == "__main__":
    # Defined here: binaries that import each other have options of the same names.
    flags.DEFINE_string("workdir", None, "The workdir of a finished run.")
    flags.DEFINE_string("input", None, "An image or volume, or a folder of them.")
    flags.DEFINE_string("output", None, "The folder for maps, pictures and scores.csv.")
    flags.DEFINE_enum(
        "maps",
        "auto",
        list(MAP_FORMATS),
        "Format of the maps. auto: NIfTI for NIfTI and volumes, 16-bit PNG otherwise.",
    )
    flags.mark_flags_as_required(["workdir", "input", "output"])
    app.run(main)
