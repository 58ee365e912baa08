"""The contract of every localiser: three pure functions and nothing else."""

from collections.abc import Callable
from typing import NamedTuple


class Localiser(NamedTuple):
    """What the trainer and the predictor know of a network.

    init(key, image) -> variables; image is one example (H, W, C).
    loss(variables, key, batch) -> (scalar, dict of scalars); batch is an `Anomaly` of batched
        arrays (B, H, W, C), (B, H, W, 1), (B, H, W, 1). key is one key, or (B,) keys, one per
        example: with those a batch split over devices draws what the whole batch would.
    sample(variables, key, images, num_samples) -> (S, B, H, W, 1) float32 probabilities.
        One sample is the plain deterministic answer; more are draws from what the network is
        unsure of. A draw depends on the key and the sample number, never on the batch mates.
    """

    init: Callable
    loss: Callable
    sample: Callable
