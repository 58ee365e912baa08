"""Devices and nothing but devices: where members of an ensemble run, and how they are lifted.

The leading axis of everything here is devices. With more devices than members each member owns a
group of devices that share its batch; with fewer, the members go in rounds. The numerics are
handed in and never see more than an axis name and its groups.
"""

import dataclasses
from functools import cached_property

import jax
import numpy as np

AXIS = "devices"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Who runs where.

    slots members run at once, each on `group` devices, in `rounds` rounds; member m runs in round
    m // slots. Slots beyond the last member repeat it and are thrown away.
    """

    num_members: int
    slots: int
    group: int
    rounds: int
    devices: tuple

    @property
    def used(self):
        return self.slots * self.group

    @cached_property
    def member_groups(self):
        """Device numbers that share a member: gradients are averaged over them."""
        return [list(range(s * self.group, (s + 1) * self.group)) for s in range(self.slots)]

    @cached_property
    def shard_groups(self):
        """Device numbers that hold the same part of a batch: members are summed over them."""
        return [list(range(g, self.used, self.group)) for g in range(self.group)]

    def members(self, round_):
        """The member of each slot in a round."""
        first = round_ * self.slots
        return [min(first + s, self.num_members - 1) for s in range(self.slots)]

    def describe(self):
        idle = len(self.devices) - self.used
        text = f"{self.num_members} member(s) on {self.used} {self.devices[0].platform} device(s)"
        if self.group > 1:
            text += f", {self.group} devices per member"
        if self.rounds > 1:
            text += f", {self.rounds} rounds of {self.slots}"
        return text + (f"; {idle} device(s) idle" if idle else "")


def plan(num_members, batch_size, devices=None):
    """Places members on devices; batch_size is the batch of one member.

    A group never splits a batch unevenly, so the mean over devices is the mean over examples;
    devices that this leaves over stay idle (`Layout.describe` says so).
    """
    devices = tuple(devices or jax.local_devices())
    rounds = -(-num_members // len(devices))
    slots = -(-num_members // rounds)
    most = len(devices) // slots
    group = max(g for g in range(1, most + 1) if batch_size % g == 0)
    return Layout(num_members, slots, group, rounds, devices)


def mean_over_member(tree, layout):
    """Inside a lifted function: averages over the devices of a member."""
    return jax.lax.pmean(tree, AXIS, axis_index_groups=layout.member_groups)


def sum_over_members(tree, layout):
    """Inside a lifted function: adds up the members of this round that see the same data."""
    return jax.lax.psum(tree, AXIS, axis_index_groups=layout.shard_groups)


def shard_index(layout):
    """Inside a lifted function: which part of its member's batch this device holds."""
    return jax.lax.axis_index(AXIS) % layout.group


def lift(function, layout, *, donate_first=False):
    """`function` on every device of a round; all arguments have the leading device axis."""
    return jax.pmap(
        function,
        axis_name=AXIS,
        devices=layout.devices[: layout.used],
        donate_argnums=(0,) if donate_first else (),
    )


def spread(members, layout):
    """Stacked members (M, ...) -> one pytree (devices, ...) per round."""
    rounds = []
    for round_ in range(layout.rounds):
        index = np.repeat(layout.members(round_), layout.group)
        rounds.append(jax.tree.map(lambda a, i=index: np.asarray(a)[i], members))
    return rounds


def place(rounds, layout):
    """Puts the trees of `spread` on their devices, as a lifted function leaves its results.

    A first call with host arrays would be compiled for those, and the second one again.
    """
    move = lift(lambda tree: tree, layout)
    return [move(tree) for tree in rounds]


def gather(rounds, layout):
    """The inverse of `spread`: one pytree (devices, ...) per round -> members (M, ...) in NumPy."""

    def stack(*parts):
        parts = [np.asarray(part)[:: layout.group] for part in parts]
        return np.concatenate(parts)[: layout.num_members]

    return jax.tree.map(stack, *rounds)


def split_batch(batch, layout):
    """A member's batch (B, ...) -> (group, B / group, ...)."""
    return jax.tree.map(lambda a: a.reshape(layout.group, -1, *a.shape[1:]), batch)


def stack_batches(batches, layout):
    """One batch (B, ...) per slot -> (devices, B / group, ...)."""
    return jax.tree.map(
        lambda *parts: np.concatenate(parts), *[split_batch(batch, layout) for batch in batches]
    )


def live_slots(layout, round_):
    """(devices,) float32: 1 where the slot holds a member of this round, 0 where it repeats one."""
    first = round_ * layout.slots
    live = np.arange(first, first + layout.slots) < layout.num_members
    return np.repeat(live, layout.group).astype(np.float32)
