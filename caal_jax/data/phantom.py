"""Made-up healthy volumes with MOOD's geometry, so that every command runs without any download.

The anatomy is drawn, not measured: organs are implicit surfaces on randomly deformed coordinates.
The result looks like a head without its skull (T1) or an abdomen (CT) and differs from subject to
subject, yet it is far simpler than a scan: results on it are stamped "phantom".

Lengths in the drawing code are fractions of half the field of view: the volume spans [-1, 1] along
each axis. A `distance` is positive inside its organ.
"""

import functools
import math

import numpy as np
from scipy import ndimage

from caal_jax.data.case import Case, DataSet, Entry, Geometry
from caal_jax.data.planted import planted_entries
from caal_jax.errors import InputError

# The axis of the file's array along which axial slices lie, as in MOOD.
SLICE_AXES = {"brain": 2, "abdomen": 1}
FIELD_OF_VIEW_MM = 256.0
SMALLEST_SIZE = 32


def make_volume(seed, *, region="brain", size=64):
    """Draws one healthy subject.

    seed: anything `numpy.random.default_rng` takes; the same seed gives the same volume.
    region: "brain" (file axes right, anterior, superior; T1-like; exactly 0 outside the brain) or
        "abdomen" (file axes right, superior, posterior; CT-like; noisy air near 0 outside).
    size: voxels along each side, at least 32.
    Returns (size, size, size) float32 in [0, 1] in the axis order of the file: axial slices lie
    along axis 2 (brain) or axis 1 (abdomen).
    Raises: InputError for an unknown region or a size below 32.
    """
    _check(region, size)
    rng = np.random.default_rng(seed)
    if region == "brain":
        return _brain(rng, size)
    return np.ascontiguousarray(_abdomen(rng, size).transpose(0, 2, 1)[:, :, ::-1])


def phantom_dataset(*, region, size, num_train, num_validation, num_test, seed):
    """Healthy phantom subjects for training, and a test split of which half carry an anomaly.

    No subject appears twice. The test split is made by `planted.planted_entries`: the kinds cycle,
    sizes run from small to large and contrasts from low to high, the masks are exact. A volume is
    made when its entry is loaded, (size, size, size, 1) float32 with the slice axis first.
    Raises: InputError for an unknown region or a size below 32.
    """
    _check(region, size)
    # Each split numbers its own subjects: more of one leaves the others as they are.
    train, validation, test = (
        [
            Entry(
                f"{split}_{i:05d}",
                functools.partial(_load, (seed, number, i), split, region=region, size=size),
            )
            for i in range(count)
        ]
        for number, (split, count) in enumerate(
            (("train", num_train), ("validation", num_validation), ("test", num_test))
        )
    )
    return DataSet(
        name=f"phantom-{region}",
        train=train,
        validation=validation,
        test=planted_entries(test, seed=seed),
        stamp="phantom",
        notes=(
            f"All images are made-up {region} volumes of {size} voxels a side; none is a scan.",
            "All test anomalies are planted, of kinds that no training task makes.",
        ),
    )


def _check(region, size):
    if region not in SLICE_AXES:
        raise InputError(
            "phantom region",
            found=repr(region),
            expected=" or ".join(repr(name) for name in SLICE_AXES),
            remedy="Choose one of them.",
        )
    if size < SMALLEST_SIZE:
        raise InputError(
            "phantom size",
            found=size,
            expected=f"at least {SMALLEST_SIZE} voxels a side",
            remedy="Raise it: the anatomy cannot be drawn on fewer voxels.",
        )


def _load(numbers, split, *, region, size):
    case_id = f"{split}_{numbers[-1]:05d}"
    slice_axis = SLICE_AXES[region]
    volume = make_volume(numbers, region=region, size=size)
    return Case(
        case_id=case_id,
        image=np.ascontiguousarray(np.moveaxis(volume, slice_axis, 0))[..., np.newaxis],
        geometry=Geometry(
            spacing_mm=(FIELD_OF_VIEW_MM / size,) * 3,
            slice_axis=slice_axis,
            affine=_affine(region, size),
        ),
        mask=np.zeros((size, size, size), bool),
        label=0,
        patient=f"phantom-{region}-{case_id}",
    )


def _affine(region, size):
    """Voxel indices of the file -> mm right, anterior, superior of the volume's centre."""
    columns = {
        "brain": np.eye(3),
        "abdomen": np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]),
    }[region]
    affine = np.eye(4)
    affine[:3, :3] = columns * (FIELD_OF_VIEW_MM / size)
    affine[:3, 3] = -affine[:3, :3] @ np.full(3, (size - 1) / 2)
    return affine


# Drawing. Scalars are Python floats throughout, so that the arrays stay float32.


def _smooth_field(rng, size, knots):
    """Random cubic B-spline field of about unit variance, (size, size, size) float32."""
    positions = np.linspace(1.0, knots - 2.0, size, dtype=np.float32)
    t = np.abs(positions[:, np.newaxis] - np.arange(knots, dtype=np.float32))
    basis = np.where(
        t < 1, 2 / 3 - t**2 + t**3 / 2, np.maximum(2 - t, np.float32(0)) ** 3 / 6
    ).astype(np.float32)
    basis /= np.sqrt(np.mean(np.sum(basis**2, axis=1)))
    field = rng.standard_normal((knots,) * 3, dtype=np.float32)
    for _ in range(3):  # each pass lifts the first axis and turns it to the back
        field = np.moveaxis(np.tensordot(basis, field, (1, 0)), 0, -1)
    return field


def _coordinates(rng, size, *, wobble):
    """Right, anterior and superior position of each voxel: jittered pose, then smooth warps."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) / size) * 2 - 1
    angles = rng.normal(0, 0.05, 3)  # radians, about 3 degrees
    turn = np.eye(3) + np.array(
        [[0, -angles[2], angles[1]], [angles[2], 0, -angles[0]], [-angles[1], angles[0], 0]]
    )
    pose = (turn / rng.normal(1, 0.03, (3, 1))).tolist()
    shift = rng.normal(0, 0.015, 3).tolist()
    x, y, z = line[:, None, None], line[None, :, None], line[None, None, :]
    return [
        pose[i][0] * x
        + pose[i][1] * y
        + pose[i][2] * z
        + (shift[i] + wobble * _smooth_field(rng, size, 7))
        for i in range(3)
    ]


def _radius(point, centre, semi_axes):
    """Distance from the centre in units of the semi-axes: 1 on the surface of the ellipsoid."""
    squares = [((p - c) / a) ** 2 for p, c, a in zip(point, centre, semi_axes, strict=True)]
    return np.sqrt(functools.reduce(np.add, squares))


def _ellipsoid(point, centre, semi_axes):
    return (1 - _radius(point, centre, semi_axes)) * min(semi_axes)


class _Canvas:
    """A volume that is painted organ by organ; edges are as soft as one voxel is wide."""

    def __init__(self, size, value):
        self.image = np.full((size, size, size), value, np.float32)
        self.edge = 2.0 / size + 0.006

    def paint(self, distance, value):
        cover = distance * (1 / self.edge) + 0.5
        np.clip(cover, 0, 1, out=cover)
        cover *= value - self.image
        self.image += cover


def _brain(rng, size):
    u, v, w = _coordinates(rng, size, wobble=0.025)
    side = np.abs(u)  # left and right mirror each other but for the warp in the coordinates
    grow = functools.partial(rng.normal, 1.0)  # organ sizes, as factors

    upper, lower = 0.62 * grow(0.03), 0.46 * grow(0.03)
    cerebrum_axes = np.array([0.66, 0.84, 1.0]) * grow(0.025, 3)
    vertical = np.where(w > 0.05, (w - 0.05) / upper, (w - 0.05) / lower)
    cerebrum = _ellipsoid((u, v, vertical), (0, 0, 0), cerebrum_axes.tolist())
    temporal = _ellipsoid((side, v, w), (0.37, 0.14, -0.27), (0.25, 0.42, 0.24 * grow(0.08)))
    hull = np.maximum(cerebrum, temporal) + 0.008 * _smooth_field(rng, size, 14)
    low = -0.46
    cerebellum = _ellipsoid((side, v, w), (0.17, -0.46, low), (0.33, 0.31, 0.25 * grow(0.06)))
    stem = _ellipsoid((u, v - 0.15 * w, w), (0, -0.08, -0.5), (0.12, 0.13, 0.42))
    head = np.maximum(np.maximum(hull, cerebellum), stem)

    grey, white, fluid = rng.normal([0.47, 0.74, 0.16], 0.02).tolist()
    ribbon = 0.04 * grow(0.08)
    surface = _cortex_surface(rng, size, (side, v, w), hull)
    canvas = _Canvas(size, fluid)
    canvas.paint(surface, grey)
    canvas.paint(surface - ribbon, white)

    # The core: nuclei and ventricles lie in white matter whatever the folds do.
    canvas.paint(_ellipsoid((side, v, w), (0.18, 0.0, 0.02), (0.22, 0.36, 0.17)), white)
    swell = math.exp(rng.normal(0, 0.22))  # ventricles differ most between healthy people
    arch = w - 0.13 + 0.5 * v**2
    horn = np.clip(1 - (v / 0.42) ** 2, 0.02, 1)
    aside = side - 0.075 - 0.35 * v**2
    ventricle = 0.055 * (
        np.sqrt(horn) * swell - np.sqrt((aside / 0.055) ** 2 + (arch / 0.085) ** 2)
    )
    size_of = functools.partial(rng.normal, 1.0, 0.07)
    caudate = _ellipsoid((side, v, arch), (0.15, 0.2, -0.02), (0.055, 0.17, 0.08 * size_of()))
    putamen = _ellipsoid(
        (side - 0.12 * v, v, w), (0.29, 0.06, -0.02), (0.06, 0.2, 0.13 * size_of())
    )
    thalamus = _ellipsoid((side, v, w), (0.115, -0.1, -0.02), (0.09 * size_of(), 0.16, 0.1))
    for nucleus in (caudate, putamen, thalamus):
        canvas.paint(nucleus, 0.25 * white + 0.75 * grey)
    canvas.paint(ventricle, fluid)
    canvas.paint(_ellipsoid((u, v, w), (0, -0.05, -0.06), (0.022 * swell, 0.2, 0.12)), fluid)

    canvas.paint(cerebellum + 0.025, fluid)
    canvas.paint(cerebellum, grey)
    leaves = np.sin(50 * w - 18 * v + 1.5 * _smooth_field(rng, size, 9))
    canvas.paint(np.minimum(cerebellum - 0.035, 0.02 * leaves - 0.004), 0.6 * white + 0.4 * grey)
    canvas.paint(_ellipsoid((side, v, w), (0.14, -0.4, low), (0.2, 0.15, 0.09)), white)
    canvas.paint(stem, 0.95 * white)
    canvas.paint(_ellipsoid((u, v, w), (0, -0.22, -0.42), (0.05, 0.035, 0.1)), fluid)

    image = canvas.image
    image += (0.05 * (1 - image)) * _smooth_field(rng, size, size // 2)
    image *= np.exp(rng.uniform(0.03, 0.08) * _smooth_field(rng, size, 5))
    noise = rng.uniform(0.008, 0.02)
    real = image + noise * rng.standard_normal(image.shape, np.float32)
    image = np.hypot(real, noise * rng.standard_normal(image.shape, np.float32))  # Rician
    image *= rng.normal(1, 0.04)
    image[head < 0] = 0
    return np.clip(image, 0, 1, dtype=np.float32)


def _cortex_surface(rng, size, point, hull):
    """Distance to the folded surface of the cerebrum: the hull minus fissures and sulci."""
    side, v, w = point
    # Sulci are the zero level of band-limited noise over directions, so they run inwards radially.
    grid = rng.standard_normal((44, 44, 44), dtype=np.float32)
    pattern = ndimage.gaussian_filter(grid, 1.65, mode="wrap")
    pattern -= ndimage.gaussian_filter(grid, 2.9, mode="wrap")
    pattern /= pattern.std()
    reach = _radius((side, v, w), (0, 0, 0), (0.66, 0.84, 0.6)) + 1e-3
    pull = reach**-0.75
    places = [
        (p / a * pull + 1.4) * (43 / 2.8)
        for p, a in zip((side, v, w), (0.66, 0.84, 0.6), strict=True)
    ]
    folds = np.abs(ndimage.map_coordinates(pattern, places, order=1, mode="nearest"))
    # A unit step of the pattern takes about 0.06 of space; sulci widen with age.
    sulcus = folds * 0.062 - rng.uniform(0.006, 0.014)
    depth = rng.uniform(0.15, 0.19) + 0.035 * _smooth_field(rng, size, 10)
    surface = np.minimum(hull, np.maximum(sulcus, hull - depth))

    callosum = (_radius((v, w), (0.0, 0.02), (0.5, 0.25)) - 1) * 0.25
    midline = side - 0.014
    below = -0.1 - w - 2 * np.maximum(np.abs(v) - 0.35, 0)
    surface = np.minimum(surface, np.maximum(np.maximum(midline, -callosum), below))
    sylvian = np.abs(w + 0.09 - 0.25 * v) - 0.014
    inner = np.maximum(0.38 - side, np.abs(v - 0.12) - 0.36)
    return np.minimum(surface, np.maximum(sylvian, inner))


def _abdomen(rng, size):
    """(right, anterior, superior) order; the caller turns it into MOOD's."""
    u, v, w = point = _coordinates(rng, size, wobble=0.02)
    rough = _smooth_field(rng, size, 10)
    grow = functools.partial(rng.normal, 1.0)
    near = functools.partial(rng.normal, scale=0.02)

    width, height = 0.86 * grow(0.05), 0.62 * grow(0.06)
    # A power above 2 flattens the back and the flanks.
    squares = np.abs(u / width) ** 2.5 + np.abs(v / height) ** 2.5
    body = (1 - squares**0.4) * height
    rim = rng.uniform(0.035, 0.11) * (1 - 0.35 * v / height) + 0.012 * rough
    wall = body - rim
    cavity = wall - 0.055 * grow(0.1)

    fat, muscle, soft = rng.normal([0.27, 0.44, 0.46], 0.008).tolist()
    contrast = rng.uniform(0.05, 0.16)  # contrast agent lifts vessels and kidneys
    gas, bone = 0.03, 0.82
    canvas = _Canvas(size, 0.0)
    canvas.paint(body, fat)
    canvas.paint(np.minimum(body, 0.018 - body), 0.38)  # skin
    canvas.paint(wall, muscle)
    canvas.paint(cavity, fat + 0.015)

    slope = w + 0.5 * v
    along = ((slope / 0.3 + rng.uniform()) % 1 - 0.5) * 0.3
    rib = 0.034 - np.sqrt(along**2 + (wall - 0.03) ** 2)
    rib = np.minimum(rib, slope - 0.05)
    rib = np.minimum(rib, np.maximum(np.abs(u) - 0.3, -0.1 - v))
    canvas.paint(rib, 0.72)
    canvas.paint(rib - 0.016, 0.58)

    def organ(centre, semi_axes, *, lumps=0.02):
        centre = [near(c) for c in centre]
        semi_axes = (np.array(semi_axes) * grow(0.07, 3)).tolist()
        return np.minimum(_ellipsoid(point, centre, semi_axes) + lumps * rough, cavity - 0.008)

    # Bowel: loops are the outside of a random field's zero level, some of them filled with gas.
    loops = 0.075 * (np.abs(_smooth_field(rng, size, 13)) - 0.35)
    belly = organ((0, 0.12, -0.55), (0.52, 0.33, 0.6), lumps=0)
    canvas.paint(np.minimum(loops, belly), soft - 0.01)
    canvas.paint(np.minimum(loops - 0.03, belly - 0.02), soft + rng.uniform(-0.05, 0.1))
    pockets = 0.06 * (_smooth_field(rng, size, 9) - 1.1)
    canvas.paint(np.minimum(np.minimum(pockets, loops - 0.025), belly - 0.03), gas)
    for centre_u in (-0.62, 0.6):
        tube = 0.1 * grow(0.12) - np.sqrt((u - near(centre_u)) ** 2 + (v - near(0.02)) ** 2)
        tube = np.minimum(tube + 0.02 * rough, np.minimum(cavity - 0.01, near(0.05) - w))
        canvas.paint(tube, soft)
        canvas.paint(np.minimum(tube - 0.03, 0.05 * rough + 0.01), gas)

    stomach = organ((-0.3, 0.15, 0.38), (0.27, 0.24, 0.26))
    canvas.paint(stomach, soft)
    canvas.paint(stomach - 0.03, soft - 0.04)
    # Subjects lie on their back: the bubble fills the front, up to a level surface.
    canvas.paint(np.minimum(stomach - 0.03, v - near(0.24)), gas)
    canvas.paint(organ((-0.56, -0.17, 0.4), (0.15, 0.2, 0.26)), 0.49 + 0.3 * contrast)
    liver = np.maximum(
        organ((0.4, 0.02, 0.42), (0.43, 0.44, 0.5)), organ((0.02, 0.24, 0.5), (0.34, 0.2, 0.25))
    )
    liver_grey = rng.normal(0.5, 0.015) + 0.2 * contrast
    canvas.paint(liver, liver_grey)
    # Two level sets cross in curves: a cheap branching tree of vessels.
    tree = np.hypot(_smooth_field(rng, size, 11), _smooth_field(rng, size, 11))
    canvas.paint(np.minimum(0.026 - 0.12 * tree, liver - 0.05), liver_grey + 0.04 + 0.4 * contrast)
    gall = organ((0.3, 0.22, 0.02), (0.085, 0.1, 0.13), lumps=0)
    canvas.paint(gall, 0.4)
    canvas.paint(organ((-0.05, 0.0, 0.12), (0.24, 0.06, 0.07)), soft)  # pancreas

    for sign, height_w in ((1, -0.08), (-1, 0.02)):
        centre = (sign * near(0.36), near(-0.24), near(height_w))
        kidney = _ellipsoid(point, centre, (0.135 * grow(0.06), 0.13 * grow(0.06), 0.29))
        kidney = np.minimum(kidney + 0.006 * rough, cavity - 0.008)
        canvas.paint(kidney, 0.5 + contrast)
        canvas.paint(kidney - 0.045, 0.48 + 0.6 * contrast)
        sinus = (centre[0] - sign * 0.07, centre[1] + 0.03, centre[2])
        canvas.paint(np.minimum(_ellipsoid(point, sinus, (0.075, 0.055, 0.13)), kidney + 0.02), fat)

    psoas = 0.085 * grow(0.1)
    for sign in (1, -1):
        across = (np.abs(u - sign * (0.21 - 0.06 * w)), v)
        front = _ellipsoid(across, (0, -0.27), (psoas, 0.09))
        canvas.paint(np.minimum(front, 0.1 - w), muscle + 0.02)
        back = _ellipsoid((u, v), (sign * 0.17, -0.46), (0.16, 0.1))
        canvas.paint(np.minimum(back, wall + 0.03), muscle)

    level = np.abs((w / 0.27 + rng.uniform()) % 1 - 0.5) * 0.27  # 0 in the middle of a vertebra
    column = _ellipsoid((u, v), (0, -0.28), (0.15 * grow(0.05), 0.12))
    canvas.paint(column, 0.48)  # discs show where no vertebra covers the column
    vertebra = np.minimum(column, 0.112 - level)
    canvas.paint(vertebra, bone)
    canvas.paint(vertebra - 0.026, 0.6)
    arch = 0.028 - np.abs(0.085 - np.hypot(u, v + 0.46))
    processes = np.maximum(
        np.minimum(0.024 - np.abs(u), np.minimum(-0.52 - v, v + 0.66)),
        np.minimum(np.minimum(0.026 - np.abs(v + 0.42), 0.24 - np.abs(u)), np.abs(u) - 0.06),
    )
    canvas.paint(
        np.minimum(np.maximum(arch, processes), np.minimum(0.085 - level, wall + 0.03)), bone - 0.05
    )
    canvas.paint(0.058 - np.hypot(u, v + 0.46), 0.43)  # spinal canal
    canvas.paint(0.05 * grow(0.08) - np.hypot(u + 0.06, v + 0.1), 0.49 + contrast)  # aorta
    canvas.paint(_ellipsoid((u, v), (0.09, -0.1), (0.065, 0.05)), 0.48 + 0.8 * contrast)  # cava

    dome = w - near(0.78) + 0.55 * ((np.abs(u) - 0.38) ** 2 + v**2)
    lung = np.minimum(_ellipsoid((np.abs(u), v), (0.43, -0.04), (0.37, 0.52)), cavity - 0.015)
    lung = np.minimum(lung + 0.015 * rough, dome)
    canvas.paint(lung, 0.1)
    canvas.paint(organ((-0.15, 0.12, 1.05), (0.3, 0.26, 0.26), lumps=0), 0.47 + 0.5 * contrast)
    canvas.paint(np.minimum(0.02 - 0.1 * tree, lung - 0.03), 0.42)

    image = canvas.image
    inside = np.clip(body / canvas.edge + 0.5, 0, 1)
    image *= 1 + 0.02 * _smooth_field(rng, size, 5) * inside
    grain = ndimage.gaussian_filter(rng.standard_normal(image.shape, np.float32), 0.6)
    image += grain * (0.006 + rng.uniform(0.02, 0.045) * inside)
    return np.clip(image, 0, 1, dtype=np.float32)
