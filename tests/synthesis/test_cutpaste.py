"""CutPaste against a restatement with NumPy, PIL, SciPy and scikit-image that takes its draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy import ndimage, stats
from skimage import color

from caal_jax.errors import InputError
from caal_jax.synthesis import cutpaste, cutpaste_3way, cutpaste_scar, cutpaste_union
from caal_jax.synthesis.cutpaste import (
    ORDERS,
    Tone,
    despeckled,
    draw_piece,
    draw_scar,
    recolour,
)

KEYS = jax.random.split(jax.random.key(2), 4)
PIECE = {"area": (0.02, 0.15), "aspect": (0.3, 3.3), "jitter": 0.1}
SCAR = {"width": (20, 60), "length": (60, 120), "max_angle": 45, "jitter": 0.1}
SIZE = (64, 48)
# For programs that run a few times: less to compile.
QUICK = {"compiler_options": {"xla_backend_optimization_level": 0}}


@pytest.fixture(scope="module")
def colours():
    """Colour images (4, 64, 48, 3), smooth, with black and white spots."""
    noise = np.random.default_rng(1).random((4, *SIZE, 3))
    noise = ndimage.gaussian_filter(noise, (0, 1.5, 1.5, 0))
    noise = (noise - noise.mean()) / noise.std()
    return np.clip(0.5 + 0.3 * noise, 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def volume():
    noise = ndimage.gaussian_filter(np.random.default_rng(2).random((12, 24, 20, 1)), 1)[..., :1]
    return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)


@functools.cache
def many(draw, shape, num_keys, foreground=None, seed=0, **options):
    def one(key):
        return draw(key, shape, foreground=foreground, **options)

    cuts = jax.jit(jax.vmap(one), **QUICK)(jax.random.split(jax.random.key(seed), num_keys))
    return jax.tree.map(np.asarray, cuts)


def cut_of(draw, key, shape, foreground=None, **options):
    one = jax.jit(
        lambda key, foreground: draw(key, shape, foreground=foreground, **options), **QUICK
    )
    return jax.tree.map(np.asarray, one(key, foreground))


def recoloured(piece, tone):
    """torchvision's ColorJitter of a float image, with scikit-image's colour spaces."""
    piece = piece.astype(np.float64)
    rgb = piece.shape[-1] == 3
    grey_of = (
        np.array([0.299, 0.587, 0.114]) if rgb else np.full(piece.shape[-1], 1 / piece.shape[-1])
    )
    for op in ORDERS[tone.order]:
        grey = (piece @ grey_of)[..., None]
        if op == 0:
            piece = tone.brightness * piece
        if op == 1:
            piece = tone.contrast * piece + (1 - tone.contrast) * grey.mean()
        if op == 2 and rgb:
            piece = tone.saturation * piece + (1 - tone.saturation) * grey
        if op == 3 and rgb:
            hsv = color.rgb2hsv(piece)
            hsv[..., 0] = (hsv[..., 0] + tone.hue) % 1
            piece = color.hsv2rgb(hsv)
        piece = np.clip(piece, 0, 1)
    return piece


def window(corner, size):
    return tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))


def turned_by_pil(piece, degrees):
    """PIL's bilinear rotation on a larger canvas, and the support."""

    def rotate(plane):
        picture = Image.fromarray(np.ascontiguousarray(plane, np.float32))
        return np.asarray(
            picture.rotate(degrees, Image.Resampling.BILINEAR, expand=True, fillcolor=-1)
        )

    turned = np.stack([rotate(plane) for plane in np.moveaxis(piece, -1, 0)], -1)
    return turned, turned[..., :1] >= 0


def pasted(cut, target, giver, *, turned=False):
    piece = recoloured(giver[window(cut.source_corner, cut.size)], cut.tone)
    support = np.ones((*piece.shape[:-1], 1), bool)
    if turned:
        degrees = np.degrees(np.arctan2(cut.turn[1, 0], cut.turn[0, 0]))
        piece, support = turned_by_pil(piece, degrees)
        assert_array_equal(piece.shape[:-1], cut.canvas)
    image = target.astype(np.float64)
    place = window(cut.target_corner, piece.shape[:-1])
    image[place] = np.where(support, piece, image[place])
    return image


def check(found, cut, target, giver, **how):
    expected = pasted(cut, target, giver, **how)
    assert_allclose(found.image, expected, atol=2e-6)
    change = np.abs(np.float64(found.image) - target).mean(-1, keepdims=True)
    clear = np.abs(change - 1 / 255) > 1e-6
    assert_array_equal(np.asarray(found.label)[clear], (change > 1 / 255)[clear])
    assert_array_equal(np.asarray(found.image)[expected == target], target[expected == target])
    assert found.label.sum() > 0.5 * np.any(expected != target, -1).sum() > 0
    assert not np.any(found.label_std)


def test_rectangle_in_colour_equals_the_restatement(colours):
    found = jax.jit(jax.vmap(cutpaste))(KEYS, colours, colours[::-1])
    for n, key in enumerate(KEYS):
        cut = cut_of(draw_piece, key, SIZE, **PIECE)
        check(jax.tree.map(lambda x, n=n: x[n], found), cut, colours[n], colours[n])


def test_rectangle_of_the_source_in_a_foreground(pairs):
    targets, sources, foregrounds = (jnp.asarray(x[0]) for x in pairs)
    task = functools.partial(cutpaste, cut_from="source", foreground=foregrounds, tolerance=0.2)
    cut = cut_of(draw_piece, KEYS[0], SIZE, foregrounds, **PIECE)
    expected = pasted(cut, np.asarray(targets), np.asarray(sources))
    found = jax.jit(task)(KEYS[0], targets, sources)
    assert_allclose(found.image, expected, atol=1e-6)
    changed = np.abs(expected - targets).mean(-1, keepdims=True) > 0.2
    assert_array_equal(found.label, changed & foregrounds)
    assert np.any(changed & ~foregrounds)


def test_scar_equals_pil(colours):
    found = jax.jit(jax.vmap(lambda *args: cutpaste_scar(*args, **SCAR)))(KEYS, colours, colours)
    for n, key in enumerate(KEYS):
        cut = cut_of(draw_scar, key, SIZE, **SCAR)
        one = jax.tree.map(lambda x, n=n: x[n], found)
        check(one, cut, colours[n], colours[n], turned=True)


def test_cuboid_without_jitter_is_a_plain_copy(volume):
    shape = volume.shape[:-1]
    task = functools.partial(cutpaste, jitter=0)
    cut = cut_of(draw_piece, KEYS[1], shape, **PIECE | {"jitter": 0})
    expected = volume.copy()
    expected[window(cut.target_corner, cut.size)] = volume[window(cut.source_corner, cut.size)]
    for lifted in (task, jax.jit(task)):
        found = lifted(KEYS[1], volume, volume)
        assert_array_equal(found.image, expected)
        assert np.any(found.label)


def test_rod_equals_scipys_interpolation(volume):
    shape = volume.shape[:-1]
    options = SCAR | {"jitter": 0, "width": (40, 80)}
    found = jax.jit(lambda key: cutpaste_scar(key, volume, volume, **options))(KEYS[0])
    cut = cut_of(draw_scar, KEYS[0], shape, **options)
    assert_allclose(cut.turn @ cut.turn.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(cut.turn) == pytest.approx(1)
    canvas = np.stack(np.mgrid[tuple(slice(0, n) for n in cut.canvas)], -1) + 0.5 - cut.canvas / 2
    places = canvas @ np.float64(cut.turn) + cut.size / 2
    support = np.all((places >= 0) & (places < cut.size), -1)
    piece = volume[window(cut.source_corner, cut.size)][..., 0]
    piece = ndimage.map_coordinates(
        np.float64(piece), np.moveaxis(places, -1, 0) - 0.5, order=1, mode="nearest"
    )
    expected = np.float64(volume[..., 0])
    place = window(cut.target_corner, np.minimum(cut.canvas, shape - cut.target_corner))
    inner = window(np.zeros(3, int), expected[place].shape)
    expected[place] = np.where(support[inner], piece[inner], expected[place])
    assert_allclose(found.image[..., 0], expected, atol=2e-6)
    assert np.any(found.label)


def test_union_is_one_of_the_triplet(colours):
    def both(key, image):
        # The union splits off its coin first.
        triplet = cutpaste_3way(jax.random.split(key)[1], image, image)
        return cutpaste_union(key, image, image), triplet

    keys = jax.random.split(jax.random.key(0), 16)
    images = np.repeat(colours, 4, axis=0)
    union, (normal, plain, scar) = jax.jit(jax.vmap(both), **QUICK)(keys, images)
    assert_array_equal(normal.image, images)
    assert not np.any(normal.label)
    is_plain = np.all(union.image == plain.image, (1, 2, 3))
    is_scar = np.all(union.image == scar.image, (1, 2, 3))
    assert_array_equal(is_plain, ~is_scar)
    assert 3 <= is_plain.sum() <= 13
    label = np.where(is_plain[:, None, None, None], plain.label, scar.label)
    assert_array_equal(union.label, label)
    assert plain.label.sum() > 5 * scar.label.sum() > 0


@pytest.mark.parametrize("op", range(4))
def test_each_step_of_the_jitter_alone(colours, op):
    factors = [1.0, 1.0, 1.0, 0.0]
    factors[op] = 0.3 if op == 3 else 1.7
    image = np.concatenate([colours[0], np.zeros((1, 48, 3)), np.ones((1, 48, 3))]).astype("f")
    tone = Tone(*map(jnp.float32, factors), jnp.int32(13))
    found = recolour(image, jnp.zeros(2, int), jnp.array(image.shape[:2]), tone)
    assert_allclose(found, recoloured(image, jax.tree.map(np.asarray, tone)), atol=2e-6)
    assert np.max(np.abs(found - image)) > 0.1


@pytest.mark.parametrize("method", ["median", "closing"])
def test_specks_as_scipy(method):
    mask = np.random.default_rng(0).random((30, 25, 1)) < 0.4
    mask[:9] = mask[:9].round()
    for spatial in (mask, mask.reshape(10, 5, 15, 1)):
        # Nothing is marked outside the image: SciPy needs to be told by a margin.
        padded = np.pad(spatial[..., 0], 4)
        if method == "median":
            wide = ndimage.median_filter(padded, 5)
        else:
            wide = ndimage.binary_closing(padded, np.ones((3,) * padded.ndim))
        inner = wide[(slice(4, -4),) * padded.ndim]
        found = jax.jit(lambda mask: despeckled(mask, method), **QUICK)(spatial)
        assert_array_equal(found[..., 0], inner)


def test_despeckling_stays_inside_the_piece(pairs):
    target = pairs[0][0]
    plain, closed = jax.jit(
        lambda key: [
            cutpaste_scar(key, target, target, **SCAR, tolerance=0.1, despeckle=method)
            for method in (None, "closing")
        ],
        **QUICK,
    )(KEYS[3])
    added = np.asarray(closed.label) - np.asarray(plain.label)
    assert added.min() == 0
    assert added.max() == 1
    cut = cut_of(draw_scar, KEYS[3], SIZE, **SCAR)
    moved = pasted(cut, np.full(target.shape, -1.0), target, turned=True).min(-1, keepdims=True)
    assert not np.any(np.asarray(closed.label)[moved < 0])


def uniform_over(values, low, high):
    assert stats.kstest(values, "uniform", (low, high - low)).pvalue > 1e-3


def test_rectangles_have_the_published_sizes_and_go_anywhere():
    cut = many(draw_piece, (500, 300), 10_000, **PIECE)
    height, width = np.float64(cut.size).T
    uniform_over(height * width / 150_000, 0.02, 0.15)
    ratio = width / height
    assert np.mean(ratio < 1) == pytest.approx(0.5, abs=0.02)
    # Whole pixels blur the ends by a few percent.
    assert 0.29 < ratio.min() < 0.31
    assert 3.2 < ratio.max() < 3.4
    fits = width < 295
    uniform_over(ratio[(ratio < 1) & fits], 0.3, 1)
    uniform_over(ratio[(ratio > 1) & (height * width < 0.07 * 150_000)], 1, 3.3)
    noise = np.random.default_rng(0).random((2, *cut.size.shape))
    room = np.array([500, 300]) - cut.size + 1
    for corner, fraction in zip((cut.source_corner, cut.target_corner), noise, strict=True):
        # Up to the last place.
        assert (corner == 0).any(0).all()
        assert (corner == room - 1).any(0).all()
        for axis in (0, 1):
            uniform_over(((corner + fraction) / room)[:, axis], 0, 1)
    assert abs(np.corrcoef(cut.source_corner[:, 0], cut.target_corner[:, 0])[0, 1]) < 0.05
    for factor in cut.tone[:3]:
        uniform_over(factor, 0.9, 1.1)
    uniform_over(cut.tone.hue, -0.1, 0.1)
    assert stats.chisquare(np.bincount(cut.tone.order, minlength=24)).pvalue > 1e-3
    assert_array_equal(np.unique(cut.turn, axis=0), np.eye(2)[None])


def test_cuboids_hold_their_share_whatever_their_shape():
    cut = many(draw_piece, (200, 200, 200), 5_000, **PIECE | {"area": (0.001, 0.002)})
    uniform_over(np.prod(np.float64(cut.size), -1) / 200**3, 0.001, 0.002)
    # Axes are drawn alike, and so are the six orders of the sides.
    for axis in (1, 2):
        assert stats.ks_2samp(cut.size[:, 0], cut.size[:, axis]).pvalue > 1e-3
    # The longest over the shortest side is at most the largest over the smallest ratio, rooted.
    ends = np.sort(cut.size, -1)
    assert 3.3 < np.max(ends[:, 2] / ends[:, 0]) < 11.5


def test_scars_have_the_published_sizes_and_turns():
    options = {"width": (2, 16), "length": (10, 25), "max_angle": 45, "jitter": 0.1}
    cut = many(draw_scar, (512, 400), 10_000, **options)
    # Twice the rows, twice the size; rounding spreads each pixel evenly.
    length, width = (cut.size + np.random.default_rng(0).random(cut.size.shape) - 0.5).T
    uniform_over(length[(length > 20.5) & (length < 49.5)], 20.5, 49.5)
    uniform_over(width[(width > 4.5) & (width < 31.5)], 4.5, 31.5)
    assert (cut.size.min(0) == [20, 4]).all()
    assert (cut.size.max(0) == [50, 32]).all()
    uniform_over(np.degrees(np.arctan2(cut.turn[:, 1, 0], cut.turn[:, 0, 0])), -45, 45)
    assert_allclose(cut.turn[:, 0, 0], cut.turn[:, 1, 1])
    assert (cut.target_corner >= 0).all()
    assert (cut.target_corner + cut.canvas <= [512, 400]).all()
    assert (cut.target_corner.max(0) > np.array([512, 400]) - 70).all()


def test_foreground_holds_both_middles(pairs):
    foreground = pairs[2][0]
    draw = jax.jit(
        jax.vmap(lambda key: draw_piece(key, SIZE, foreground=jnp.asarray(foreground), **PIECE))
    )
    cut = jax.tree.map(np.asarray, draw(jax.random.split(jax.random.key(5), 500)))
    for corner in (cut.source_corner, cut.target_corner):
        # Pieces that would leave the image are moved back into it.
        free = np.all((corner > 0) & (corner < np.array(SIZE) - cut.size), -1)
        middle = (corner + cut.size // 2)[free]
        assert foreground[middle[:, 0], middle[:, 1], 0].all()
        assert free.mean() > 0.3
    assert len(np.unique(cut.target_corner, axis=0)) > 200


def test_illegal_options_are_named(pairs):
    target = pairs[0][0]
    for options, field in (
        ({"aspect": (1.2, 3)}, "aspect"),
        ({"jitter": 0.6}, "jitter"),
        ({"cut_from": "x"}, "cut_from"),
        ({"despeckle": "x"}, "despeckle"),
    ):
        with pytest.raises(InputError, match=field):
            cutpaste(KEYS[0], target, target, **options)
    with pytest.raises(InputError, match="jitter"):
        cutpaste_scar(KEYS[0], target, target, jitter=-0.1)


LARGE = {
    "piece": {"area": (0.3, 1.0), "aspect": (0.01, 100.0)},
    "scar": {"width": (100, 600), "length": (1, 900), "max_angle": 180},
    "both": {"jitter": 0.5, "despeckle": "median"},
}


@functools.cache
def compiled(shape, large):
    piece, scar, both = LARGE.values() if large else ({}, {}, {})

    def run(key, target, source, foreground):
        args, how = (key, target, source), {"foreground": foreground}
        flat = jnp.full_like(target, 0.5)
        return (
            cutpaste(*args, **how, **piece, **both),
            cutpaste_scar(*args, **how, **scar, **both),
            cutpaste(*args, **how, jitter=0),
            cutpaste(key, 1 - target[..., ::-1], source, **how, jitter=0),
            cutpaste(key, flat, flat, **how, jitter=0),
        )

    return jax.jit(run, **QUICK)


@pytest.mark.parametrize(
    ("shape", "large"),
    [((16, 512, 1), False), ((33, 16, 3), True), ((16, 18, 17, 1), False)],
    ids=["wide", "large", "volume"],
)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), fill=st.sampled_from([0.0, 0.02, 1.0]))
def test_what_always_holds(shape, large, seed, fill):
    rng = np.random.default_rng(seed)
    # Flat, noisy and nearly black images; foregrounds from empty to full.
    target, source = (
        rng.random(shape, np.float32) ** np.float32(rng.choice([0, 1, 9])) for _ in range(2)
    )
    foreground = rng.random((*shape[:-1], 1)) < fill
    found = compiled(shape, large)(jax.random.key(seed), target, source, foreground)
    plain, scar, copied, inverted, flat = jax.tree.map(np.asarray, found)
    for anomaly in (plain, scar, copied):
        assert np.isfinite(anomaly.image).all()
        assert anomaly.image.min() >= 0
        assert anomaly.image.max() <= 1
        assert np.isin(anomaly.label, (0, 1)).all()
        assert not np.any(anomaly.label[~foreground])
        assert not np.any(anomaly.label_std)
        if not foreground.any():
            assert_array_equal(anomaly.image, target)
    if not large:
        # All that changed enough is labelled, and no more changed than the largest piece holds.
        for anomaly in (plain, scar, copied):
            change = np.abs(np.float64(anomaly.image) - target).mean(-1, keepdims=True)
            clear = np.abs(change - 1 / 255) > 1e-6
            assert_array_equal(anomaly.label[clear], (foreground & (change > 1 / 255))[clear])
        # Sides are rounded to whole pixels.
        limit = 0.15 * plain.label.size * (1.3 if len(shape) == 3 else 2)
        assert np.any(plain.image != target, -1).sum() <= limit
    # A plain copy moves values, whatever they mean.
    assert_array_equal(inverted.image, 1 - copied.image[..., ::-1])
    assert_array_equal(flat.image, np.full(shape, 0.5))
    assert not np.any(flat.label)
