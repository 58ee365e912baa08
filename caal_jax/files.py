"""Files that appear whole or not at all, and names that stay inside their folder."""

import os
import re
from pathlib import Path


def folder(path):
    """The folder as a `Path`, made if it is not there."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_bytes(path, data):
    """Replaces a file in one step; a reader sees the old one or the new one. Returns the path."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_text(path, text):
    return write_bytes(path, text.encode())


def safe_name(name):
    """A file name for a case: letters, digits, dot, dash and underscore, at most 100 long."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".")[:100] or "case"


def distinct_names(names):
    """`safe_name` of each; those that would meet, even without regard to case, get a number."""
    found, taken = [], set()
    for stem in map(safe_name, names):
        name, number = stem, 2
        while name.lower() in taken:
            name, number = f"{stem}_{number}", number + 1
        taken.add(name.lower())
        found.append(name)
    return found
