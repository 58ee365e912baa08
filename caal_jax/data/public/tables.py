"""Published tables in, rows out: CSV with any line ends, packed or not, and nothing but text."""

import csv
import gzip
import io
import re
import zlib

from caal_jax.errors import InputError

MAX_BYTES = 2**30  # of an unpacked table; the largest published one has 60 MB


def read_text(path):
    """The text of a table, unpacked if its name ends in .gz, without a byte-order mark.

    Raises: InputError if the file is missing, damaged, larger than 1 GiB or not a text.
    """
    return _read_bytes(path).decode("utf-8-sig", errors="replace")


def _read_bytes(path):
    try:
        if not path.is_file():
            raise InputError(
                path,
                found="no such file",
                expected="a table of images",
                remedy="Check the path; a published table comes from where the images came from.",
            )
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _broken(path, f"damaged data ({error})") from error
    if len(data) > MAX_BYTES:
        raise _broken(path, f"more than {MAX_BYTES} bytes")
    if b"\0" in data:
        raise _broken(path, "bytes that are no text")
    return data


def read_table(path, columns, *, keep=None):
    """The rows of a CSV file as dictionaries; blanks around names and values are dropped.

    columns: names that must be in the header. keep: those that rows shall have, where they are
    there; without it all, at five times the file's size. A row that is too short has "" where it
    ends.
    Raises: InputError as `read_text`, or if a column is missing or a quote is never closed.
    """
    data = io.BytesIO(_read_bytes(path))
    text = io.TextIOWrapper(data, encoding="utf-8-sig", errors="replace", newline="")
    # Lists of numbers stand inside quotes, and old tables end lines by a carriage return.
    lines = csv.reader(text, strict=True)
    rows, same = [], {}
    try:
        header = [name.strip() for name in next(lines, [])]
        missing = [name for name in columns if name not in header]
        if missing:
            raise _broken(path, f"no column {missing[0]!r}", f"the columns {', '.join(columns)}")
        kept = [(at, name) for at, name in enumerate(header) if keep is None or name in keep]
        for line in filter(None, lines):
            line += [""] * (len(header) - len(line))
            values = ((name, line[at].strip()) for at, name in kept)
            # Most columns hold few different values, each of which is kept once.
            rows.append({name: same.setdefault(value, value) for name, value in values})
    except csv.Error as error:
        raise _broken(path, f"broken CSV ({error})") from error
    return rows


def numbers(text, count):
    """The `count` finite numbers written in a field, or None if it holds anything else."""
    words = re.split(r"[\s,;]+", text.strip(" []"))
    try:
        found = [float(word) for word in words]
    except ValueError:
        return None
    usable = len(found) == count and all(abs(number) < 1e9 for number in found)
    return found if usable else None


def _broken(path, found, expected="a whole table, as text"):
    remedy = "Correct it; if it is a published table, download it again."
    return InputError(path, found=found, expected=expected, remedy=remedy)
