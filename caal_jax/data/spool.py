"""Arrays that wait on disk: one file and one mapping, however many they are."""

import math
import tempfile
from pathlib import Path

import numpy as np

ALIGNMENT = 64  # bytes; every array starts at a multiple


class Spool:
    """Arrays of any types and shapes, appended to one nameless file, which goes with its reader."""

    def __init__(self, folder):
        """folder: where the file lies; made if it is not there."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._stream = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, `close` is below
        self._places = []

    def append(self, array):
        self._places.append((self._stream.tell(), array.shape, array.dtype))
        self._stream.write(np.ascontiguousarray(array))
        self._stream.write(b"\0" * (-self._stream.tell() % ALIGNMENT))

    def close(self):
        """The arrays in their order, read-only and memory-mapped; no more can be appended."""
        with self._stream as stream:
            stream.flush()
            mapped = np.memmap(stream, np.uint8, mode="r")
        return [
            mapped[start : start + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
            for start, shape, dtype in self._places
        ]
