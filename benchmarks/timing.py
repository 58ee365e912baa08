"""How the benchmarks measure."""

import time

import jax


def alternate(*functions, rounds=10):
    """The best time in seconds of each function, called in turn so that noise hits all alike."""
    best = [float("inf")] * len(functions)
    for function in functions:
        jax.block_until_ready(function())  # compiles
    for _ in range(rounds):
        for k, function in enumerate(functions):
            start = time.perf_counter()
            jax.block_until_ready(function())
            best[k] = min(best[k], time.perf_counter() - start)
    return best
