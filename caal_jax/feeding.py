"""What the training loop eats: from device memory, host memory, or records read ahead of it."""

import dataclasses
import os
import time

import numpy as np

from caal_jax import parallel
from caal_jax.data.slices import RecordImages
from caal_jax.data.volumes import VolumeBank

# Of a device's free memory; the rest is for parameters, activations and their gradients.
DEVICE_SHARE = 0.25
READ_AHEAD = 2  # steps per thread


class SliceNumbers:
    """Stands in for a bank's images: its batches then hold the numbers of slices."""

    def __init__(self, shape):
        self.shape = shape

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, numbers):
        return np.int32(numbers)


class Feed:
    """Iterates over (step, read(step)); `share_waited` tells how much of the time went into it.

    read: from a step to what is fed. Where the bank's images stay in files, threads of Grain
    call it ahead of time; the order is that of the steps, whatever the threads do.
    """

    def __init__(self, read, steps, bank):
        self._read, self._steps, self._waited = read, steps, 0.0
        self._ahead = stays_in_files(bank)
        self._began = time.monotonic()

    def __iter__(self):
        found = self._read_ahead() if self._ahead else map(self._read, self._steps)
        for step in self._steps:
            began = time.monotonic()
            fed = next(found)
            self._waited += time.monotonic() - began
            yield step, fed

    @property
    def share_waited(self):
        return self._waited / max(time.monotonic() - self._began, 1e-9)

    def _read_ahead(self):
        import grain

        threads = os.cpu_count()
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=READ_AHEAD * threads)
        return iter(grain.MapDataset.source(self._steps).map(self._read).to_iter_dataset(options))


def choose_memory(bank, layout):
    """Where a bank's slices wait, decided from sizes: (bank, pick, text).

    bank: to read batches from. pick: turns the stacked batches of a round into pixels; all it does
    is look them up if the slices are in the memory of each device, where they are put if they take
    at most a quarter of what is free there. text: one line that says what was decided.
    """
    sides = " x ".join(map(str, bank.shape))
    if isinstance(bank, VolumeBank):
        place = "files" if bank.on_disk else "host memory"
        text = f"patches of {sides} from {len(bank)} volumes, {bank.nbytes / 1e6:.1f} MB in {place}"
        return bank, _as_it_is, text
    size = f"{len(bank)} slices of {sides}"
    if isinstance(bank.images, RecordImages):
        return bank, _as_it_is, f"{size}, read from records ahead of each step"
    size += f", {bank.images.nbytes / 1e6:.1f} MB"
    fits = bool(bank.images.nbytes <= DEVICE_SHARE * parallel.free_bytes(layout))
    # Looking up is a step of all processes together, so that they have to do the same.
    if not parallel.agree(fits):
        place = "a file" if isinstance(bank.images, np.memmap) else "host memory"
        return bank, _as_it_is, f"{size} in {place}"
    images = parallel.replicate(bank.images, layout)

    def look_up(images, batch):
        if batch.target.ndim > 1:  # of held-out cases, whose pixels are not there
            return batch
        return batch._replace(target=images[batch.target], source=images[batch.source])

    lifted = parallel.lift(look_up, layout)
    numbers = dataclasses.replace(bank, images=SliceNumbers(bank.images.shape))
    return numbers, lambda batch: lifted(images, batch), f"{size} in the memory of each device"


def stays_in_files(bank):
    """Whether each batch of a bank is read when it is needed."""
    if isinstance(bank, VolumeBank):
        return bank.on_disk
    return isinstance(bank.images, RecordImages)


def _as_it_is(batch):
    return batch
