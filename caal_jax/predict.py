"""The binary for new scans: maps, confidence and scores from a finished run.

python -m caal_jax.predict --workdir=DIR --input=FILE_OR_FOLDER --output=DIR
"""

import csv
import sys
from pathlib import Path

from absl import app, flags
from tqdm import tqdm

from caal_jax import files, report
from caal_jax.data import slice_axis
from caal_jax.data.readers import image_files, read_image, stem_of
from caal_jax.errors import InputError
from caal_jax.evaluate import gallery_item, safe_row, write_maps
from caal_jax.localise import FinishedRun

WORKDIR = flags.DEFINE_string("workdir", None, "The workdir of a finished run.")
INPUT = flags.DEFINE_string("input", None, "An image or volume, or a folder of them.")
OUTPUT = flags.DEFINE_string("output", None, "The folder for maps, pictures and scores.csv.")

COLUMNS = ("file", "score", "score_std", "probability", "p_value", "verdict")


def predict(workdir, source, output):
    """Localises anomalies in a file or in every supported file of a folder.

    Writes, per file, `<name>_anomaly` (calibrated probability) and `<name>_uncertainty` (epistemic,
    as a share of its largest value) in the file's own geometry, NIfTI for NIfTI and 16-bit PNG
    otherwise, and `<name>.png` to look at; and scores.csv, a line per file as it is done. Files
    that cannot be read are told and skipped. Returns (rows of scores.csv, messages of the skipped).
    Raises: InputError if the run or the input is not there, or if no file could be read.
    """
    source, output = Path(source), Path(output)
    run = FinishedRun.load(workdir)
    paths = list_inputs(source)
    names = output_names(paths, source)
    files.folder(output)
    rows, skipped = [], []
    with (output / "scores.csv").open("w", newline="") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(COLUMNS)
        for path, name in zip(tqdm(paths, desc="localising", unit="file"), names, strict=True):
            try:
                case = read_image(path, slice_axis=slice_axis(run.config))
                found = run.predict(case)
            except InputError as error:
                skipped.append(str(error))
                tqdm.write(f"skipped: {error}")
                continue
            write_maps(output / name, found, case)
            report.case_picture(output / f"{name}.png", gallery_item(case, found))
            shown = path.relative_to(source) if path != source else path.name
            rows.append((str(shown), *(getattr(found, column) for column in COLUMNS[1:])))
            writer.writerow(safe_row(rows[-1]))
            table.flush()
    if not rows:
        raise InputError(
            source,
            found=f"{len(skipped)} file(s), none of them usable; the first: {skipped[0]}",
            expected="at least one readable image",
            remedy="Repair or convert the files.",
        )
    return rows, skipped


def list_inputs(source):
    """The file itself, or the supported files of a folder. Raises `InputError` if there is none."""
    if source.is_file():
        return [source]
    paths = image_files(source) if source.is_dir() else []
    if not paths:
        raise InputError(
            source,
            found="an empty folder" if source.is_dir() else "nothing",
            expected="an image, a volume, or a folder of them (PNG, JPEG, TIFF, NIfTI, DICOM)",
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
    try:
        rows, skipped = predict(WORKDIR.value, INPUT.value, OUTPUT.value)
    except InputError as error:
        sys.exit(f"error: {error}")
    for row in rows[:20]:
        name, score, _, probability, _, verdict = row
        print(f"{verdict:9s} p={probability:.2f} score={score:.4f} {name}")
    if len(rows) > 20:
        print(f"... and {len(rows) - 20} more")
    print(f"{len(rows)} localised, {len(skipped)} skipped: {Path(OUTPUT.value) / 'scores.csv'}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "input", "output"])
    app.run(main)
