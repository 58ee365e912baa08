"""Natural synthetic anomalies in NumPy, OpenCV and SciPy, on grey levels: the peer of `nsa`.

Restates the published generator step by step, with its retry loops, its clone through OpenCV and
its medians; the tests use the parts without chance as their reference. Images are uint8 (H, W, C),
places and sizes (row, column). `nsa` runs all of it with the constants for chest X-rays.
"""

import cv2
import numpy as np
from scipy import ndimage

HALF_WIDTH, GAMMA, NUM_PATCHES, RESIZE = (0.03, 0.4), (2, 0.03, 0.05), 3, (0.7, 1.3)
MIN_OBJECT = MIN_OVERLAP = 0.7
DISK = np.hypot(*np.mgrid[-5:6, -5:6]) <= 5


def nsa(rng, target, source, *, background=None, mixed=True, label="logistic-intensity"):
    objects = background and [find_object(image, background) for image in (target, source)]
    image, mask = target, np.zeros(target.shape[:2], bool)
    for n in range(NUM_PATCHES):
        if n > 0 and rng.random() < 0.5:
            continue
        place = find_place(rng, target.shape[:2], objects)
        if place is not None:
            image, piece = add_patch(image, source, objects, *place, mixed=mixed)
            mask |= piece
    return image, grade(target, image, mask, label, logistic=(1 / 2, 4))


def find_object(image, background):
    mask = np.ones(image.shape[:2], bool)
    for value, threshold in background:
        mask &= np.abs(image.mean(-1) - value) > threshold
    return cv2.medianBlur(mask.astype(np.uint8), 7) > 0


def find_place(rng, shape, objects):
    """Source box (corner, size), new size and target corner, or None after 200 tries of either."""
    shape, (low, high) = np.array(shape), np.round(np.outer(HALF_WIDTH, shape)).astype(int)
    gamma_shape, scale, offset = GAMMA
    half = np.clip((offset + rng.gamma(gamma_shape, scale, 2)) * shape, low, high).astype(int)
    for _ in range(200):
        middle = rng.integers(low, shape - low)
        corner = np.maximum(middle - half, 0)
        size = np.minimum(middle + half, shape) - corner
        if not objects or cut(objects[1], corner, size).mean() > MIN_OBJECT:
            break
    else:
        return None

    new_size = resized_sides(size, np.clip(rng.normal(1, 0.5), *RESIZE), low, high)
    if objects:
        own = resize(cut(objects[1], corner, size), new_size)
    half = new_size // 2
    for _ in range(200):
        place = rng.integers(half + 1, shape - half - 1) - half
        if not objects:
            return corner, size, new_size, place
        met = own & cut(objects[0], place, new_size)
        if own.mean() > MIN_OBJECT and met.sum() / own.sum() > MIN_OVERLAP:
            return corner, size, new_size, place
    return None


def resized_sides(size, scale, low, high):
    height = np.clip(scale * size[0], low[0], high[0])
    width = np.clip(int(height / size[0] * size[1]), low[1], high[1])
    return np.array([np.clip(int(width / size[1] * size[0]), low[0], high[0]), width], int)


def cut(image, corner, size):
    return image[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]


def resize(image, size):
    """Bilinear, to (rows, columns); of a mask too, cut at one half."""
    if image.dtype == bool:
        return cv2.resize(image.astype(np.uint8), (int(size[1]), int(size[0]))) > 0
    return cv2.resize(image, (int(size[1]), int(size[0]))).reshape(*size, -1)


def add_patch(image, source, objects, corner, size, new_size, place, *, mixed, piece=None):
    """The image with one more clone, and where the patch counts (H, W); both unchanged if tiny.

    piece: (rows, columns) bool, the patch's outline; all of the box by default.
    """
    foreign = resize(cut(source, corner, size), new_size)
    piece = np.ones(new_size, bool) if piece is None else piece
    solved = piece
    if objects:
        own, theirs = (
            cut(objects[0], place, new_size),
            resize(cut(objects[1], corner, size), new_size),
        )
        solved = piece | ~(own | theirs)
        piece = piece & (own | theirs)
    solved = np.pad(solved[1:-1, 1:-1], 1)
    mask = np.zeros(image.shape[:2], bool)
    if solved.sum() < 50:
        return image, mask
    cut(mask, place, new_size)[:] = piece
    # The clone's middle is that of the outline's bounding box; and it wants three channels.
    rows, columns = (np.flatnonzero(solved.any(axis)) for axis in (1, 0))
    top, left = place[0] + rows[0], place[1] + columns[0]
    point = left + (columns[-1] - columns[0] + 1) // 2, top + (rows[-1] - rows[0] + 1) // 2
    channels = image.shape[2]
    if channels < 3:
        image, foreign = (
            np.concatenate([x, np.zeros((*x.shape[:2], 3 - channels), np.uint8)], -1)
            for x in (image, foreign)
        )
    flag = cv2.MIXED_CLONE if mixed else cv2.NORMAL_CLONE
    point = tuple(map(int, point))
    result = cv2.seamlessClone(foreign, image, 255 * solved.astype(np.uint8), point, flag)
    return result[..., :channels], mask


def grade(target, image, mask, label, *, logistic, tolerance=1):
    """The label (H, W) of the change within the mask; all in grey levels."""
    change = np.abs(target.astype(float) - image).mean(-1)
    changed = cv2.medianBlur((mask & (change > tolerance)).astype(np.uint8), 5)
    if label == "binary":
        return changed
    intensity = ndimage.median_filter(changed * change, footprint=DISK, mode="nearest")
    if label == "intensity":
        return intensity
    steepness, middle = logistic
    return changed / (1 + np.exp(-steepness * (intensity - middle)))
