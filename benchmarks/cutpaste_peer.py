"""CutPaste as its published code does it, for comparison: pieces of 8-bit PIL images, one by one.

`cutpaste` and `cutpaste_scar` restate pytorch-cutpaste with torchvision's colour jitter of PIL
images: brightness, contrast and, for RGB, saturation and hue, in random order. The label is that
of the dense task, 1 where the piece changed the image. Both take (rng, target), the target (H, W)
or (H, W, 3) uint8 as read from a file, and return image and label, float32 as a network needs
them. `cutpaste_numpy` is the plain form for grey images without PIL, float32 in [0, 1] throughout:
the fastest that we know how to write.
"""

import math

import numpy as np
from PIL import Image, ImageEnhance

JITTER, TOLERANCE = 0.1, 1 / 255


def jitter(rng, piece):
    def shift_hue(piece, factor):
        hue, saturation, value = piece.convert("HSV").split()
        moved = np.asarray(hue) + np.uint8(round(255 * (factor - 1)) % 256)  # wraps around
        return Image.merge("HSV", (Image.fromarray(moved), saturation, value)).convert("RGB")

    steps = [
        lambda piece, factor: ImageEnhance.Brightness(piece).enhance(factor),
        lambda piece, factor: ImageEnhance.Contrast(piece).enhance(factor),
        lambda piece, factor: ImageEnhance.Color(piece).enhance(factor),
        shift_hue,
    ]
    for k in rng.permutation(4):
        if k < 2 or piece.mode == "RGB":
            piece = steps[k](piece, rng.uniform(1 - JITTER, 1 + JITTER))
    return piece


def draw_sides(rng, height, width):
    area = rng.uniform(0.02, 0.15) * height * width
    ratio = rng.uniform(0.3, 1) if rng.random() < 0.5 else rng.uniform(1, 3.3)
    sides = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
    return min(max(sides[0], 1), height), min(max(sides[1], 1), width)


def finish(before, after):
    """Image and label of a changed PIL image."""
    before, after = (np.asarray(x, np.float32) / 255 for x in (before, after))
    change = np.abs(after - before)
    change = change if change.ndim == 2 else change.mean(-1)
    return after, (change > TOLERANCE).astype(np.float32)


def cutpaste(rng, target):
    picture = Image.fromarray(target)
    width, height = picture.size
    tall, wide = draw_sides(rng, height, width)
    top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
    piece = jitter(rng, picture.crop((left, top, left + wide, top + tall)))
    result = picture.copy()
    corner = int(rng.integers(width - wide + 1)), int(rng.integers(height - tall + 1))
    result.paste(piece, corner)
    return finish(picture, result)


def cutpaste_scar(rng, target):
    picture = Image.fromarray(target)
    width, height = picture.size
    wide, tall = (
        max(round(rng.uniform(*sides) * height / 256), 1) for sides in ((2, 16), (10, 25))
    )
    top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
    piece = jitter(rng, picture.crop((left, top, left + wide, top + tall)))
    mode = {"L": "LA", "RGB": "RGBA"}[piece.mode]
    piece = piece.convert(mode).rotate(rng.uniform(-45, 45), Image.Resampling.BILINEAR, expand=True)
    room = width - piece.width + 1, height - piece.height + 1
    result = picture.copy()
    corner = tuple(int(rng.integers(max(n, 1))) for n in room)
    result.paste(
        piece.convert(picture.mode), corner, piece.getchannel("A").point(lambda a: 255 * (a > 127))
    )
    return finish(picture, result)


def cutpaste_numpy(rng, target):
    height, width = target.shape
    tall, wide = draw_sides(rng, height, width)
    top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
    piece = target[top : top + tall, left : left + wide]
    brightness, contrast = rng.uniform(1 - JITTER, 1 + JITTER, 2).astype(np.float32)
    for k in rng.permutation(2):
        factor, other = (contrast, piece.mean()) if k else (brightness, np.float32(0))
        piece = np.clip(factor * piece + (1 - factor) * other, 0, 1)
    top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
    place = np.s_[top : top + tall, left : left + wide]
    image, label = target.copy(), np.zeros_like(target)
    image[place] = piece
    label[place] = np.abs(image[place] - target[place]) > TOLERANCE
    return image, label
