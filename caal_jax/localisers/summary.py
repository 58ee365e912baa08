"""How large a localiser is, and how much work."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Summary(NamedTuple):
    """parameters: their number. flops: floating-point operations of one answer for one image."""

    parameters: int
    flops: float

    def __str__(self):
        return f"{self.parameters:,} parameters, {self.flops / 1e9:.3g} GFLOP per image"


def summarise(localiser, shape):
    """The `Summary` of a localiser for images of one shape; nothing is compiled or run.

    Operations are XLA's count before optimisation, a multiplication and an addition being two.
    """
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(localiser.init, key, image)
    answer = jax.jit(localiser.sample, static_argnums=3)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    cost = answer.lower(variables, key, images, 1).cost_analysis()
    return Summary(sum(leaf.size for leaf in jax.tree.leaves(variables)), cost["flops"])
