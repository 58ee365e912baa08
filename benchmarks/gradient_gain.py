"""What equalisation does to gradients: python benchmarks/gradient_gain.py --data=../shared/data

For a brain MRI (LGG, FLAIR), a breast ultrasound (BUSI) and a phantom slice: the image, its
equalised forms and their gradient magnitudes, with the mean gain, as one picture (--output).
Images are first rescaled to [0, 1] by their 0.5th and 99.5th percentile. The gain is the ratio of
the mean gradient magnitudes over the foreground; the identity in the methods' theory says that
over the unit range a global equalisation has a mean gain of the integral of p squared, p the
density of intensities: at least 1, and the larger the more peaked the histogram.
"""

import argparse
from pathlib import Path

import cv2
import jax
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import ndimage

from caal_jax.data.letterbox import letterbox
from caal_jax.data.phantom import make_volume
from caal_jax.preprocess import (
    equalize_adapthist,
    equalize_foreground,
    equalize_hist,
    foreground,
    rescale,
)

SIZE = 256
ULTRASOUND = "BUSI/Dataset_BUSI_with_GT/normal/normal (10).png"
BRAIN = "LGG/kaggle_3m/TCGA_DU_8165_19970205/TCGA_DU_8165_19970205_19.tif"


def read(path, channel):
    image = cv2.imread(str(path))
    if image is None:
        raise SystemExit(f"{path}: not found or no image. Pass the data folder with --data.")
    return letterbox(image[..., ::-1][..., channel : channel + 1], size=SIZE, spacing_mm=(1, 1))[0]


def forms(image):
    """Name -> form of an image (H, W, 1) in [0, 1], and its foreground."""
    inside = foreground(image)
    return inside, {
        "original": image,
        "equalize_hist": equalize_hist(image),
        "equalize_foreground": equalize_foreground(image, inside),
        "equalize_adapthist": equalize_adapthist(image),
    }


def steepness(image):
    """Gradient magnitude (H, W), forward differences as the Poisson tasks take them."""
    return np.hypot(
        np.diff(image, axis=0, append=image[-1:]), np.diff(image, axis=1, append=image[:, -1:])
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with LGG and BUSI")
    parser.add_argument("--output", type=Path, default=Path("gradient_gain.png"))
    args = parser.parse_args()
    raw = {
        "brain MRI": read(args.data / BRAIN, 1),
        "ultrasound": read(args.data / ULTRASOUND, 0),
        "phantom": np.rot90(make_volume(0, size=128)[:, :, 64])[..., None],
    }
    names = ["original", "equalize_hist", "equalize_foreground", "equalize_adapthist"]
    figure, grid = plt.subplots(2 * len(raw), len(names), figsize=(11, 5.6 * len(raw)))
    print(f"{'':12}" + "".join(f"{name:>22}" for name in [*names[1:], "integral of p^2"]))
    for number, (title, image) in enumerate(raw.items()):
        image = np.asarray(rescale(image, *np.percentile(image, (0.5, 99.5))))
        inside, made = jax.jit(forms)(image)
        # The rim of the body is a step to black in every form: what counts is the texture inside.
        inside = ndimage.binary_erosion(np.asarray(inside)[..., 0], iterations=3)
        slopes = {name: steepness(np.asarray(form)[..., 0]) for name, form in made.items()}
        gains = [slopes[n][inside].mean() / slopes["original"][inside].mean() for n in names]
        density = np.histogram(image[..., 0][inside], 64, (0, 1), density=True)[0]
        row = [*gains[1:], np.mean(density**2)]
        print(f"{title:12}" + "".join(f"{value:22.2f}" for value in row))
        for column, (name, gain) in enumerate(zip(names, gains, strict=True)):
            above, below = grid[2 * number][column], grid[2 * number + 1][column]
            above.imshow(made[name][..., 0], cmap="gray", vmin=0, vmax=1)
            above.set_title(f"{title}: {name}" if column == 0 else name, fontsize=9)
            below.imshow(slopes[name], cmap="magma", vmin=0, vmax=0.25)
            below.set_title(f"gradient magnitude, mean gain {gain:.2f}", fontsize=9)
    for axes in grid.flat:
        axes.axis("off")
    figure.tight_layout()
    figure.savefig(args.output, dpi=90)


if __name__ == "__main__":
    main()
