"""NSA's evaluation on MVTec and on chest X-rays: a central crop is scored, the rest counts as 0.

Paper: Schlüter et al. 2022, NSA (doi:10.48550/arXiv.2109.15222). Reference:
hmsch/natural-synthetic-anomalies, experiments/mvtec_tasks.py and chest_xray_tasks.py.
"""

import numpy as np

from caal_jax.errors import InputError
from caal_jax.metrics.image_scores import mean
from caal_jax.metrics.inputs import check_binary, check_scores
from caal_jax.metrics.ranking import average_precision, roc_auc
from caal_jax.metrics.regions import aupro


def center_crop(image, size=224):
    """The central square of (H, W, ...): what objects and chest X-rays of 256 are cut to."""
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def pad_to(scores, shape):
    """A map (h, w) with zeros around it: the centre of (H, W)."""
    margins = [(whole - part) / 2 for whole, part in zip(shape, scores.shape, strict=True)]
    if any(margin < 0 or margin % 1 for margin in margins):
        raise InputError(
            "maps",
            found=f"shape {scores.shape}",
            expected=f"that of the masks, {tuple(shape)}, or a central crop with equal margins",
            remedy="Resize the maps to the crop that was scored, 224 of 256.",
        )
    return np.pad(scores, [(int(margin), int(margin)) for margin in margins])


def mvtec(maps, masks):
    """The five numbers of MVTec: image and pixel AP and AUROC, and AUPRO up to 30 % FPR, a dict.

    maps: (N, h, w); masks: (N, H, W), 0 or 1. Maps of textures cover the masks; those of objects
    are central crops (`center_crop`), and what was cut off scores 0, which caps what an anomaly
    near the border can reach. The score of an image is the mean of its map before padding, and an
    image is anomalous if its mask is not empty. NaN where a metric is undefined.

    AUPRO is the number of the reference's `pro_score`, which refuses images of over 24 regions.
    """
    masks = check_binary("masks", masks)
    padded = np.stack([pad_to(one, masks.shape[1:]) for one in check_scores("maps", maps)])
    return chest_xray(maps, masks.any(axis=(1, 2))) | {
        "pixel_ap": average_precision(padded, masks),
        "pixel_auroc": roc_auc(padded, masks),
        "aupro": aupro(padded, masks),
    }


def chest_xray(maps, labels):
    """Image AP and AUROC of chest X-rays, a dict: the score is the mean of the map.

    maps: (N, h, w) of the central 224 x 224 pixels of images of 256 x 256; labels: (N,), 0 or 1.
    The reference takes the mean after padding, which changes no order and hence no number here.
    """
    scores = [mean(one) for one in check_scores("maps", maps)]
    return {"image_ap": average_precision(scores, labels), "image_auroc": roc_auc(scores, labels)}
