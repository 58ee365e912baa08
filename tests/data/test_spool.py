"""Arrays on disk: as they were appended, and as many as there are, whatever may be open."""

import os
import resource

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from caal_jax.data.case import Case, Entry, Geometry
from caal_jax.data.slices import SliceBank
from caal_jax.data.spool import Spool
from caal_jax.data.volumes import VolumeBank

RNG = np.random.default_rng(0)
SPARE = 20  # files that may still be opened


@pytest.fixture
def few_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + SPARE, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_arrays_come_back_as_they_were(tmp_path):
    arrays = [
        RNG.integers(0, 9, shape).astype(dtype)
        for shape in ((3,), (1, 5, 7, 3), (2, 2))
        for dtype in (np.uint8, np.uint16, np.int16, np.float16, np.float32)
    ]
    arrays.append(arrays[1][..., ::2])  # not contiguous
    spool = Spool(tmp_path / "new")
    for array in arrays:
        spool.append(array)
    found = spool.close()
    assert not list((tmp_path / "new").iterdir())
    for array, again in zip(arrays, found, strict=True):
        assert isinstance(again, np.memmap)
        assert again.flags.aligned
        assert not again.flags.writeable
        assert_array_equal(again, array, strict=True)


@pytest.mark.parametrize("bank", ["slices", "volumes"])
def test_more_cases_on_disk_than_files_may_be_open(tmp_path, few_files, bank):
    def load(number):
        # Types in turn, so that what follows a case of one byte lies at no multiple of four.
        volume = RNG.integers(1, 99, (3, 9, 9, 1)).astype((np.uint8, np.float32)[number % 2])
        return Case(str(number), volume, Geometry((1.0, 1.0, 1.0)))

    cases = [load(number) for number in range(3 * SPARE)]
    entries = [Entry(case.case_id, lambda case=case: case) for case in cases]
    given = {"max_bytes": 1, "cache_dir": tmp_path}
    if bank == "slices":
        found = SliceBank.build(entries, image_size=9, **given)
        images = np.stack([case.image for case in sorted(cases, key=lambda case: case.case_id)])
        assert_array_equal(found.images, images.reshape(-1, 9, 9, 1).astype(np.float32))
    else:
        found = VolumeBank.build(entries, patch=(3, 9, 9), **given)
        for name, volume in zip(found.case_ids, found.volumes, strict=True):
            assert_array_equal(volume, cases[int(name)].image, strict=True)
