"""Feeding: the same batches from device memory, host memory and records, in the order of steps."""

import dataclasses
import json
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from caal_jax import feeding, parallel
from caal_jax.data.case import Case, Entry, Geometry
from caal_jax.data.facts import slice_facts
from caal_jax.data.records import RecordEntry
from caal_jax.data.slices import SliceBank
from caal_jax.defaults import training_config
from caal_jax.feeding import Feed, choose_memory
from caal_jax.train import round_batches

RNG = np.random.default_rng(0)


class Records:
    """Decoded examples in a list, read slowly and out of order by threads."""

    def __init__(self, slices):
        self.slices, self.threads = slices, set()

    def read(self, numbers):
        self.threads.add(threading.get_ident())
        time.sleep(0.002 * (numbers[0] % 3))
        return [{"image": self.slices[number]} for number in numbers]


def make_cases(colour=False):
    """Volumes of several depths, an empty slice each, of float values: (cases, their slices)."""
    shape = (14, 12, 3 if colour else 1)
    volumes = [RNG.integers(1, 255, (depth, *shape)).astype(np.uint8) for depth in (4, 6, 5)]
    for volume in volumes:
        volume[0] = 0
    geometry = Geometry((2.0, 1.0, 1.5))
    return [Case(f"c{k}", volume, geometry, label=0) for k, volume in enumerate(volumes)]


def both(cases, **options):
    """Banks of the same cases: in memory, and of records, with what the records are read from."""
    records = Records([one for case in cases for one in case.image])
    entries, first = [], 0
    for case in cases:
        line = {
            "case_id": case.case_id,
            "patient": case.case_id,
            "shape": case.image.shape,
            "spacing_mm": case.geometry.spacing_mm,
            "dtype": "uint8",
            "facts": slice_facts(case),
            "first_record": first,
            "num_records": len(case.image),
        }
        entries.append(RecordEntry(json.loads(json.dumps(line)), records))
        first += len(case.image)
    plain = [Entry(case.case_id, lambda case=case: case) for case in cases]
    memory = SliceBank.build(plain, image_size=16, **options)
    return memory, SliceBank.build(entries, image_size=16, max_bytes=10, **options), records


@pytest.mark.parametrize("colour", [False, True])
def test_records_give_the_batches_of_memory(colour):
    memory, stream, records = both(make_cases(colour))
    assert isinstance(stream.images, feeding.RecordImages)
    assert len(stream) == len(memory) == 4 + 6 + 5 - 3
    assert memory.notes == ("3 nearly empty training slices were left out.",)
    assert set(memory.notes) < set(stream.notes)
    assert "near-duplicates of test images were not looked for" in stream.notes[-1]

    def read(bank):
        return lambda step: bank.batch(3, step, 5)

    fed = list(Feed(read(stream), range(4, 30), stream))
    assert [step for step, _ in fed] == list(range(4, 30))
    for step, batch in fed:
        jax.tree.map(lambda a, b: assert_array_equal(a, b, strict=True), batch, read(memory)(step))
    assert threading.get_ident() not in records.threads


def test_mixed_colours_become_grey_alike():
    cases = make_cases(True)
    grey = make_cases()[0]
    cases[0] = grey
    memory, stream, _ = both(cases)
    assert stream.images.shape == memory.images.shape == (len(memory), 16, 16, 1)
    assert set(memory.notes) < set(stream.notes)
    jax.tree.map(assert_array_equal, memory.batch(0, 0, 8), stream.batch(0, 0, 8))


def test_a_feed_that_is_resumed_goes_on_as_if_unbroken():
    _, stream, _ = both(make_cases())

    def indices(start):
        read = lambda step: stream.batch(1, step, 4).indices  # noqa: E731
        return [found.tolist() for _, found in Feed(read, range(start, 12), stream)]

    assert indices(5) == indices(0)[5:]


def test_an_error_in_reading_reaches_the_loop():
    _, stream, _ = both(make_cases())

    def read(step):
        raise ValueError(f"broken record in step {step}")

    with pytest.raises(ValueError, match="broken record in step 7"):
        next(iter(Feed(read, range(7, 9), stream)))


def test_the_share_waited_counts_reading_only(monkeypatch):
    memory, _, _ = both(make_cases())
    clock = [0.0]
    monkeypatch.setattr(feeding.time, "monotonic", lambda: clock[0])

    def read(step):
        clock[0] += 1

    feed = Feed(read, range(5), memory)
    for _ in feed:
        clock[0] += 4
    assert feed.share_waited == 0.2


@pytest.mark.parametrize("num_members", [1, 3])
def test_slices_in_device_memory_are_the_same(monkeypatch, num_members):
    memory, stream, _ = both(make_cases())
    layout = parallel.plan(num_members, 4)
    size = memory.images.nbytes
    monkeypatch.setattr(parallel, "free_bytes", lambda layout: 4 * size)
    bank, pick, text = choose_memory(memory, layout)
    assert text == "12 slices of 16 x 16 x 1, 0.0 MB in the memory of each device"
    numbers = [bank.batch(seed, 2, 4) for seed in range(layout.slots)]
    assert numbers[0].target.shape == (4,)
    wanted = [memory.batch(seed, 2, 4) for seed in range(layout.slots)]
    found = pick(parallel.stack_batches(numbers, layout))
    wanted = parallel.stack_batches(wanted, layout)
    jax.tree.map(lambda a, b: assert_array_equal(np.asarray(a), b), found, wanted)
    monkeypatch.setattr(parallel, "free_bytes", lambda layout: 4 * size - 1)
    bank, pick, text = choose_memory(memory, layout)
    assert bank is memory
    assert pick(wanted) is wanted
    assert text.endswith("in host memory")
    assert choose_memory(stream, layout)[2].endswith("read from records ahead of each step")


class Counted:
    """The images of a bank, and how many were read."""

    def __init__(self, images):
        self.images, self.shape, self.read = images, images.shape, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, numbers):
        self.read += len(numbers)
        return self.images[numbers]


@pytest.mark.parametrize(("num_members", "own_rows"), [(1, 8), (3, 24)])
def test_a_process_reads_what_its_devices_hold(monkeypatch, num_members, own_rows):
    memory, _, _ = both(make_cases())
    config = training_config()
    config.batch_size, config.accumulation = 16, 2
    devices = [SimpleNamespace(process_index=p, platform="cpu") for p in (0, 1) for _ in range(4)]
    for process in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        layout = parallel.plan(num_members, 8, devices)
        counted = Counted(memory.images)
        bank = dataclasses.replace(memory, images=counted)
        found = round_batches(config, layout, 0, bank, range(num_members), 3)
        assert counted.read == 2 * own_rows  # targets and sources
        whole = [memory.batch(seed, 3, 16) for seed in range(num_members)]
        for part in (slice(0, 8), slice(8, 16)):
            rows = [
                parallel.stack_batches(jax.tree.map(lambda a, p=part: a[p], batches), layout)
                for batches in (found, whole)
            ]
            jax.tree.map(assert_array_equal, *rows)


def test_a_cpu_has_no_memory_of_its_own():
    assert parallel.free_bytes(parallel.plan(1, 4)) <= 0
