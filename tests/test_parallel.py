import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from caal_jax import parallel

RNG = np.random.default_rng(0)


def layout_of(num_members, num_devices, batch_size=16):
    return parallel.plan(num_members, batch_size, jax.devices()[:num_devices])


@pytest.mark.parametrize(
    ("num_members", "num_devices", "batch_size", "slots", "group", "rounds"),
    [
        (1, 1, 16, 1, 1, 1),
        (1, 8, 16, 1, 8, 1),
        (1, 6, 16, 1, 4, 1),  # six devices cannot share 16 examples evenly
        (1, 6, 12, 1, 6, 1),
        (1, 8, 7, 1, 7, 1),
        (3, 2, 16, 1, 2, 3),  # not two rounds, one of them with a core for nothing
        (4, 2, 16, 2, 1, 2),
        (3, 6, 16, 3, 2, 1),
        (3, 8, 16, 3, 2, 1),
        (3, 8, 5, 3, 1, 1),
        (5, 2, 16, 1, 2, 5),
        (5, 2, 7, 2, 1, 3),  # seven examples cannot be shared
        (5, 8, 16, 5, 1, 1),
        (8, 6, 16, 3, 2, 3),
        (8, 8, 16, 8, 1, 1),
        (16, 1, 16, 1, 1, 16),
        (16, 6, 16, 6, 1, 3),
        (16, 8, 16, 8, 1, 2),
    ],
)
def test_who_runs_where(num_members, num_devices, batch_size, slots, group, rounds):
    layout = layout_of(num_members, num_devices, batch_size)
    assert (layout.slots, layout.group, layout.rounds) == (slots, group, rounds)
    assert layout.used == slots * group


@pytest.mark.parametrize(
    ("num_members", "num_devices", "slots", "group", "rounds"),
    [(3, 2, 2, 1, 2), (5, 2, 2, 1, 3), (8, 6, 4, 1, 2), (3, 8, 3, 2, 1)],
)
def test_accelerators_in_rounds_get_whole_batches(num_members, num_devices, slots, group, rounds):
    devices = [SimpleNamespace(process_index=0, platform="gpu") for _ in range(num_devices)]
    layout = parallel.plan(num_members, 16, devices)
    assert (layout.slots, layout.group, layout.rounds) == (slots, group, rounds)


@pytest.mark.parametrize(
    ("num_members", "num_devices", "batch_size"),
    list(itertools.product([1, 3, 5, 8, 16], [1, 2, 6, 8], [1, 6, 16])),
)
def test_every_plan_is_whole(num_members, num_devices, batch_size):
    layout = layout_of(num_members, num_devices, batch_size)
    assert layout.used <= num_devices
    assert batch_size % layout.group == 0
    everyone = [layout.members(r) for r in range(layout.rounds)]
    assert all(len(members) == layout.slots for members in everyone)
    flat = list(itertools.chain(*everyone))
    assert flat[:num_members] == list(range(num_members))
    assert set(flat[num_members:]) <= {num_members - 1}
    live = np.concatenate([parallel.live_slots(layout, r) for r in range(layout.rounds)])
    assert live.dtype == np.float32
    assert_array_equal(live, np.arange(live.size) < num_members * layout.group)
    # Both groupings hold every device once, and meet in one device.
    for groups in (layout.member_groups, layout.shard_groups):
        assert sorted(itertools.chain(*groups)) == list(range(layout.used))
    for member, shard in itertools.product(layout.member_groups, layout.shard_groups):
        assert len(set(member) & set(shard)) == 1
    idle = num_devices - layout.used
    assert (f"; {idle} device(s) idle" in layout.describe()) == bool(idle)


def test_a_plan_tells_what_it_does():
    assert layout_of(1, 1).describe() == "1 member(s) on 1 cpu device(s)"
    told = "3 member(s) on 6 cpu device(s), 2 devices per member; 2 device(s) idle"
    assert layout_of(3, 8).describe() == told
    assert (
        layout_of(5, 2).describe()
        == "5 member(s) on 2 cpu device(s), 2 devices per member, 5 rounds of 1"
    )


def test_all_local_devices_are_the_default():
    assert parallel.plan(1, 8).devices == tuple(jax.local_devices())


@pytest.mark.parametrize(
    ("num_members", "num_devices", "batch_size"),
    [(1, 8, 16), (3, 8, 16), (3, 2, 16), (3, 2, 7), (16, 6, 16)],
)
def test_spread_and_gather_are_inverse(num_members, num_devices, batch_size):
    layout = layout_of(num_members, num_devices, batch_size)
    members = {"a": RNG.random((num_members, 2, 3)), "b": (np.arange(num_members),)}
    rounds = parallel.spread(members, layout)
    assert len(rounds) == layout.rounds
    for number, tree in enumerate(rounds):
        index = np.repeat(layout.members(number), layout.group)
        assert_array_equal(tree["a"], members["a"][index])
    jax.tree.map(assert_array_equal, parallel.gather(rounds, layout), members)


def test_batches_are_cut_into_consecutive_parts_slot_by_slot():
    layout = layout_of(3, 6, batch_size=4)  # three slots of two devices
    batches = [{"x": 100 * slot + np.arange(8).reshape(4, 2)} for slot in range(3)]
    split = parallel.split_batch(batches[1], layout)["x"]
    assert_array_equal(split, [[[100, 101], [102, 103]], [[104, 105], [106, 107]]])
    stacked = parallel.stack_batches(batches, layout)["x"]
    assert stacked.shape == (6, 2, 2)
    assert_array_equal(stacked[:, 0, 0], [0, 4, 100, 104, 200, 204])
    assert_array_equal(stacked[2:4], split)


RATE = 0.3
STEPS = 3


def descend(weights, xs, ys, layout):
    """`STEPS` steps of linear regression per member; weights (M, 3), xs (steps, M, B, 3)."""

    def step(w, batch):
        x, y = batch
        gradient = jax.grad(lambda w: jnp.mean((x @ w - y) ** 2))(w)
        return w - RATE * parallel.mean_over_member(gradient, layout)

    lifted = parallel.lift(step, layout)
    rounds = parallel.spread(weights, layout)
    for x, y in zip(xs, ys, strict=True):
        for number in range(layout.rounds):
            batches = [(x[m], y[m]) for m in layout.members(number)]
            rounds[number] = lifted(rounds[number], parallel.stack_batches(batches, layout))
    return parallel.gather(rounds, layout)


@pytest.mark.parametrize(
    ("num_members", "num_devices"), [(1, 8), (3, 8), (8, 8), (3, 2), (4, 2), (8, 6)]
)
def test_many_devices_give_the_result_of_one(num_members, num_devices):
    weights = RNG.normal(size=(num_members, 3)).astype(np.float32)
    xs = RNG.normal(size=(STEPS, num_members, 16, 3)).astype(np.float32)
    ys = RNG.normal(size=(STEPS, num_members, 16)).astype(np.float32)
    expected = np.float64(weights)
    for x, y in zip(np.float64(xs), np.float64(ys), strict=True):
        error = np.einsum("mbi,mi->mb", x, expected) - y
        expected = expected - RATE * 2 * np.einsum("mbi,mb->mi", x, error) / 16
    one = descend(weights, xs, ys, layout_of(num_members, 1))
    many = descend(weights, xs, ys, layout_of(num_members, num_devices))
    assert one.shape == many.shape == (num_members, 3)
    assert_allclose(many, one, rtol=1e-6, atol=1e-6)
    assert_allclose(many, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("num_members", "num_devices", "batch_size"),
    [(3, 8, 4), (5, 2, 4), (5, 2, 3)],  # the last with a slot that repeats a member
)
def test_members_add_up_over_slots_and_rounds(num_members, num_devices, batch_size):
    layout = layout_of(num_members, num_devices, batch_size)
    values = RNG.random((num_members, batch_size, 2), np.float32)

    @lambda function: parallel.lift(function, layout)
    def add(part, live):
        return parallel.sum_over_members(live * part, layout), parallel.shard_index(layout)

    total = 0
    for number in range(layout.rounds):
        batches = [values[m] for m in layout.members(number)]
        live = parallel.live_slots(layout, number)
        sums, shards = map(np.asarray, add(parallel.stack_batches(batches, layout), live))
        assert_array_equal(shards, np.tile(np.arange(layout.group), layout.slots))
        for device in range(layout.used):  # every device of a shard knows the sum
            assert_array_equal(sums[device], sums[device % layout.group])
        total = total + np.concatenate(sums[: layout.group])
    assert_allclose(total, values.sum(0), rtol=1e-6)
