"""Counting and looking up: what every equalisation is made of."""

import jax
import jax.numpy as jnp
import numpy as np


def count(index, counted, num_bins):
    """How many of the counted pixels have each index; scatter-add, faster than one-hot or sort.

    index: (N,) uint32 below num_bins; counted: (N,) bool, or None for all pixels.
    Returns (num_bins,) int32.
    """
    ones = 1 if counted is None else counted.astype(jnp.int32)
    return jnp.zeros(num_bins, jnp.int32).at[index].add(ones, mode="promise_in_bounds")


def take(table, index):
    """table[index]; table: (K,), index: (N,) uint32 below K.

    Unsigned, because signed indices are first searched for negative ones.
    """
    return table.at[index].get(mode="promise_in_bounds")


def settle(index):
    """The same uint32 indices, below 2^30, made once for all of their uses.

    XLA:CPU would repeat cheap arithmetic inside each look-up, where nothing is vectorised, but it
    does not repeat a whole division. (optimization_barrier does not keep it from that.)
    """
    return (3 * index + 1) // np.uint32(3)


def one_by_one(function):
    """The function of arrays to one array, whose jax.vmap is a loop over the examples on a CPU.

    Batched scatters and gathers carry a (batch, position) pair for each pixel, which costs XLA:CPU
    more than the work itself, and a whole batch of intermediate images does not fit its caches.
    Accelerators take the batch at once.
    """
    function = jax.custom_batching.custom_vmap(function)

    @function.def_vmap
    def _(size, is_batched, *arrays):
        def lift(batched, array):
            return array if batched else jnp.broadcast_to(array, (size, *array.shape))

        arrays = jax.tree.map(lift, tuple(is_batched), arrays)
        batches = jax.lax.platform_dependent(
            *arrays,
            cpu=lambda *arrays: jax.lax.map(lambda example: function(*example), arrays),
            default=jax.vmap(function.fun),
        )
        return batches, True

    return function
