"""Files appear whole or not at all."""

import os


def write_atomically(path, content):
    """Writes bytes to a `Path`; a reader, or a killed run, never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
