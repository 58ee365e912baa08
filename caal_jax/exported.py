"""Loads what `python -m caal_jax.export` wrote; needs jax (with flatbuffers) and numpy alone."""

import jax.export
import numpy as np


def load(path):
    """-> predict(B cases of N slices (B, N, H, W, C) as in the file, spacing_mm (row, column))."""
    data = bytearray(np.fromfile(path, np.uint8))
    try:
        model = jax.export.deserialize(data)
    except Exception as error:  # whatever the parser makes of a broken or a newer file
        raise ValueError(f"{path}: jax {jax.__version__} cannot read it, see its card") from error

    def predict(images, spacing_mm=(1.0, 1.0)):
        images, channels = np.asarray(images), model.in_avals[0].shape[-1]
        if images.ndim != 5 or images.shape[-1] != channels:
            raise ValueError(f"images: want (B, N, H, W, {channels}), got {images.shape}")
        flat = images.reshape(len(images), -1)
        ends = np.percentile(flat[:, :: flat.shape[1] // 2**20 | 1], (0.5, 99.5), axis=1)
        ends = np.where(ends[0] < ends[1], ends, [flat.min(1), flat.max(1)])
        arguments = map(np.float32, (images, *ends, spacing_mm))
        try:
            found = jax.device_get(model.call(*arguments, images.dtype.kind in "iu"))
        except jax.errors.JaxRuntimeError as error:
            raise ValueError(f"{path}: jax {jax.__version__} cannot run it: {error}") from error
        return found | {"verdict": np.array(["normal", "abnormal", "abstain"])[found["verdict"]]}

    return predict
