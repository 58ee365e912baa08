"""Near-duplicates: does the test split show what training has seen?

A fingerprint is a thumbnail of an image's detail, and two images whose fingerprints correlate are
taken for the same picture. Measured on parts of 8 public sets (breast ultrasound, brain MRI, chest
films, head CT, photographs): known duplicates correlate at 0.90 or more, images of different
patients at 0.83 or less, volumes of different patients at 0.56 or less.
"""

import copy
import io

import cv2
import numpy as np

from caal_jax.files import write_bytes

SIDE = 24
ALIKE = 0.87
PLACES = (0.3, 0.5, 0.7)  # of the slices that stand for a volume
ROWS_AT_ONCE = 4096


def fingerprint(image):
    """(P, SIDE, SIDE) int8: detail of an image (H, W, C), P = 1, or of P = 3 slices of a volume.

    It does not change with size, contrast or brightness, and little with noise or compression; a
    crop by more than 3 % a side, or large marks drawn in, hide a copy. Zero everywhere for a
    constant image.
    """
    volume = image if image.ndim == 4 else image[None]
    slices = [volume[int(place * len(volume))] for place in (PLACES if image.ndim == 4 else (0,))]
    detail = np.stack([_detail(one.mean(axis=-1, dtype=np.float32)) for one in slices])
    return np.round(127 * detail / max(np.abs(detail).max(), 1e-9)).astype(np.int8)


def _detail(grey):
    small = cv2.resize(grey, (2 * SIDE, 2 * SIDE), interpolation=cv2.INTER_AREA)
    detail = small - cv2.GaussianBlur(small, (0, 0), sigmaX=4)
    return cv2.resize(detail, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def most_alike(prints, others):
    """For each of `others` (M, P, S, S) its nearest of `prints` (N, P, S, S), mirrored or not.

    Returns (index (M,), correlation (M,) float32 in [-1, 1]). N > 0.
    """
    index, best = np.zeros(len(others), np.int64), np.full(len(others), -1.0, np.float32)
    for row in range(0, len(others), ROWS_AT_ONCE):
        some = slice(row, row + ROWS_AT_ONCE)
        wanted = _unit(others[some])
        for start in range(0, len(prints), ROWS_AT_ONCE):
            part = prints[start : start + ROWS_AT_ONCE]
            for turned in (part, part[..., ::-1]):
                alike = wanted @ _unit(turned).T
                at = alike.argmax(axis=1)
                value = alike.max(axis=1)
                index[some] = np.where(value > best[some], start + at, index[some])
                best[some] = np.maximum(value, best[some])
    return index, best


def _unit(prints):
    flat = prints.reshape(len(prints), -1).astype(np.float32)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


class Seen:
    """Name, patient and fingerprint of every case that was loaded through `watch`."""

    def __init__(self):
        self._cases = {}

    def watch(self, entries):
        """The entries, each of which now tells this record what it loads."""
        return [self._watched(entry) for entry in entries]

    def _watched(self, entry):
        def load():
            case = entry.load()
            self.add(case.case_id, case.patient, fingerprint(case.image))
            return case

        watched = copy.copy(entry)  # of whatever class
        object.__setattr__(watched, "load", load)
        return watched

    def add(self, name, patient, print_):
        self._cases[name] = (patient, print_)

    def save(self, path):
        """Writes an .npz file, without pickles."""
        arrays = {}
        for planes in (1, len(PLACES)):
            names, patients, prints = self._columns(planes)
            arrays |= {
                f"names_{planes}": np.array(names, np.str_),
                f"patients_{planes}": np.array(patients, np.str_),
                f"prints_{planes}": prints,
            }
        out = io.BytesIO()
        np.savez(out, **arrays)
        write_bytes(path, out.getvalue())

    @classmethod
    def read(cls, path):
        """What `save` wrote; nothing if there is no such file."""
        seen = cls()
        if path.is_file():
            with np.load(path, allow_pickle=False) as found:
                for planes in (1, len(PLACES)):
                    names, patients, prints = (
                        found[f"{column}_{planes}"] for column in ("names", "patients", "prints")
                    )
                    known = zip(patients.tolist(), prints, strict=True)
                    seen._cases |= dict(zip(names.tolist(), known, strict=True))
        return seen

    def _columns(self, planes):
        """Names, patients and prints (N, planes, SIDE, SIDE) of the images, or of the volumes."""
        # Several threads add to this in any order.
        cases = sorted(self._cases.items(), key=lambda item: item[0])
        kept = [(name, *case) for name, case in cases if len(case[1]) == planes]
        names, patients, prints = zip(*kept, strict=True) if kept else ((), (), ())
        return names, patients, np.array(prints, np.int8).reshape(-1, planes, SIDE, SIDE)

    def shared_patients(self, test):
        """Patients that `test`, another record, has too, in order."""
        ours, theirs = ({patient for patient, _ in s._cases.values()} for s in (self, test))
        return sorted((ours & theirs) - {""})

    def look_alikes(self, test):
        """[(case here, case in `test`, correlation)], the most alike first.

        For each case of `test` the nearest here, if their correlation is at least `ALIKE`.
        """
        pairs = []
        for planes in (1, len(PLACES)):
            (ours, _, prints), (theirs, _, others) = self._columns(planes), test._columns(planes)
            if ours:
                found = zip(theirs, *most_alike(prints, others), strict=True)
                pairs += [(ours[k], name, float(c)) for name, k, c in found if c >= ALIKE]
        return sorted(pairs, key=lambda pair: -pair[2])

    def leaks(self, test):
        """A sentence each, for a report, on what `test` shares with what was recorded here."""
        notes = []
        if patients := self.shared_patients(test):
            notes.append(
                f"LEAK: {len(patients)} patient(s) are in training and in test, such as "
                f"{patients[0]}; the test scores flatter."
            )
        if pairs := self.look_alikes(test):
            ours, theirs, correlation = pairs[0]
            notes.append(
                f"LEAK? {len(pairs)} test image(s) look like a training image, most of all "
                f"{theirs} like {ours} (correlation {correlation:.2f}); where both show the same, "
                "the test scores flatter."
            )
        return notes
