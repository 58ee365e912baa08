"""What every localiser promises, and how a config names one."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import parity
import pytest
from flax import linen as nn

from caal_jax.defaults import training_config
from caal_jax.errors import InputError
from caal_jax.localise import ONLY_2D, build_localiser
from caal_jax.localisers import HEADS, LOCALISERS, Localiser, summarise
from caal_jax.synthesis import Anomaly

KEY = jax.random.key(0)
SMALL = {
    "unet": {"width": 4, "depth": 2},
    "fpi_wrn": {"width": 1},
    "nsa_resnet18": {"width": 16},
    "phiseg": {"width": 2, "depth": 2, "latent_levels": 2},
    "probabilistic_unet": {"width": 2, "depth": 2},
}
VOLUMETRIC = ("unet", "phiseg", "probabilistic_unet")


def build(name, **changes):
    config = training_config()
    config.localiser = name
    config.update(SMALL[name] | changes)
    return build_localiser(config)


def shapes_of(localiser, shape, num_samples=3):
    """Shapes of (variables, gradient and loss parts, samples), by tracing alone."""

    def everything(image, key):
        variables = localiser.init(key, image[0])
        batch = Anomaly(image, image[..., :1], image[..., :1])
        keys = jax.random.split(key, len(image))
        (loss, parts), gradient = jax.value_and_grad(localiser.loss, has_aux=True)(
            variables, keys, batch
        )
        samples = localiser.sample(variables, key, image, num_samples)
        return variables, gradient, {"loss": loss, **parts}, samples

    return jax.eval_shape(everything, jnp.zeros(shape), KEY)


def test_every_localiser_is_tested():
    assert SMALL.keys() == LOCALISERS.keys()
    assert set(VOLUMETRIC) | set(ONLY_2D) == LOCALISERS.keys()
    assert not set(VOLUMETRIC) & set(ONLY_2D)


@pytest.mark.parametrize("name", LOCALISERS)
def test_images_of_any_size_in_float32_whatever_is_computed_in(name):
    variables, gradient, losses, samples = shapes_of(
        build(name, compute_dtype="bfloat16"), (2, 21, 34, 3)
    )
    assert samples.shape == (3, 2, 21, 34, 1)
    assert {leaf.shape for leaf in losses.values()} == {()}
    leaves = jax.tree.leaves((variables, gradient, losses, samples))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", VOLUMETRIC)
def test_volumes_of_any_size(name):
    variables, *_, samples = shapes_of(build(name), (2, 5, 9, 6, 1), num_samples=2)
    assert samples.shape == (2, 2, 5, 9, 6, 1)
    assert {leaf.ndim for leaf in jax.tree.leaves(variables)} == {1, 5}


@pytest.mark.parametrize("name", LOCALISERS)
@pytest.mark.parametrize("head", HEADS)
def test_localisers_take_any_head(name, head):
    localiser = build(name, head=head)

    def everything(image):
        variables = localiser.init(KEY, image[0])
        losses = localiser.loss(variables, KEY, Anomaly(image, image, image))
        return losses, localiser.sample(variables, KEY, image, 2)

    (loss, parts), samples = jax.eval_shape(everything, jnp.zeros((1, 16, 16, 1)))
    extra = {"kl"} if name in ("phiseg", "probabilistic_unet") else set()
    assert parts.keys() == HEADS[head]().weights.keys() | extra
    assert {part.shape for part in (loss, *parts.values())} == {()}
    assert samples.shape == (2, 1, 16, 16, 1)


def test_parameters_of_the_resnet_by_hand():
    def block(i, o, shortcut=True):
        return 9 * i * o + 9 * o * o + 4 * o + (i * o + 2 * o) * shortcut

    encoder = 49 * 64 + 128 + 2 * block(64, 64, False)
    for i, o in ((64, 128), (128, 256), (256, 512)):
        encoder += block(i, o) + block(o, o, False)
    decoder = 512 * 256 + 256 * 128 + block(128, 64) + block(64, 32) + block(32, 16)
    assert number_of_parameters("nsa_resnet18") == encoder + decoder + 49 * 16 * 2 + 2


@pytest.mark.parametrize(("depth", "up"), [(16, (128, 64, 16)), (19, (128, 128, 64, 16))])
def test_parameters_of_the_wide_resnet_by_hand(depth, up):
    def block(i, o):
        return 2 * i + 2 * o + 9 * i * o + 9 * o * o + i * o * (i != o)

    widths = [16, 64, 128, 256, 256, 256] + [256] * (depth == 19) + [*up, 2]
    blocks = sum(block(i, o) for i, o in itertools.pairwise(widths))
    assert number_of_parameters("fpi_wrn", depth=depth) == 9 * 16 + blocks + 2


def unit(i, o, taps=9):
    """Parameters of a unit of PHiSeg, and of its latents and encoders below."""
    return taps * i * o + 2 * o


LEVELS = [32, 64, 128, 192, 192, 192, 192]


def encoder(inputs):
    return sum(unit(i, o) + 2 * unit(o, o) for i, o in itertools.pairwise([inputs, *LEVELS]))


def test_parameters_of_phiseg_by_hand():
    latents = (9 * 192 * 2 + 2) + (192 * 2 + 2)
    likelihood, below = 0, None
    for level in reversed(range(5)):
        f, at_full = LEVELS[level], LEVELS[level + 2]
        if level < 4:
            latents += unit(2, 64) + unit(64, 64) + unit(at_full + 64, f) + unit(f, f)
            latents += 2 * (2 * f + 2)
            likelihood += unit(below, f) + unit(2 * f, at_full) + unit(at_full, at_full)
        likelihood += unit(2, f) + 3 * unit(f, f)
        below = at_full if level < 4 else f
        likelihood += below * 2 + 2
    expected = encoder(1) + encoder(2) + 2 * latents + likelihood
    assert number_of_parameters("phiseg") == expected


def test_parameters_of_the_probabilistic_unet_by_hand():
    decoder = sum(unit(i + o, o) + 2 * unit(o, o) for i, o in itertools.pairwise(LEVELS[::-1]))
    combine = unit(32 + 6, 32, 1) + 2 * unit(32, 32, 1) + 32 * 2 + 2
    expected = 2 * encoder(1) + encoder(2) + decoder + 2 * 2 * (192 * 6 + 6) + combine
    assert number_of_parameters("probabilistic_unet") == expected


def number_of_parameters(name, **options):
    config = training_config()
    config.localiser = name
    config.update(options)
    variables = jax.eval_shape(build_localiser(config).init, KEY, jnp.zeros((64, 64, 1)))
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


def test_the_default_is_the_published_unet():
    assert number_of_parameters("unet") == 247_318
    assert number_of_parameters("unet", width=24, depth=4) == 247_318


def refuse(match, **changes):
    config = training_config()
    config.update(changes)
    with pytest.raises(InputError, match=match):
        build_localiser(config)


def test_mistyped_names_are_refused_with_the_right_ones():
    refuse(r"config.localiser.*'unett'.*'fpi_wrn' or", localiser="unett")
    refuse(r"config.head.*'stdd'.*'std' or 'binary'", head="stdd")
    refuse(r"config.compute_dtype.*'float16'.*'bfloat16'", compute_dtype="float16")


@pytest.mark.parametrize(
    ("localiser", "option", "value"),
    [
        ("unet", "latent_levels", 3),
        ("nsa_resnet18", "depth", 4),
        ("phiseg", "dropout", 0.2),
        ("probabilistic_unet", "latent_levels", 3),
        ("unet", "num_classes", 5),
        ("unet", "width", -8),
        ("unet", "dropout", 1.0),
        ("unet", "depth", -1),
        ("fpi_wrn", "depth", 4),
        ("fpi_wrn", "depth", 18),
        ("phiseg", "latent_levels", 8),
        ("phiseg", "residual", False),
    ],
)
def test_options_that_a_localiser_does_not_have_are_refused(localiser, option, value):
    refuse(rf"config.{option}: found {value}; expected", localiser=localiser, **{option: value})


def volume_parameters(**changes):
    config = training_config()
    config.update({"patch_size": "16,16,16", **SMALL["unet"], **changes})
    return jax.eval_shape(build_localiser(config).init, KEY, jnp.zeros((16, 16, 16, 1)))["params"]


def test_thick_slices_are_told_by_their_spacing():
    # The stem folds 2 x 2 x 2 voxels of two channels, of slices of 5 mm 1 x 2 x 2.
    assert volume_parameters()["Conv_0"]["kernel"].shape == (3, 3, 3, 16, 4)
    thick = volume_parameters(spacing_mm="5, 1, 1")
    assert thick["Conv_0"]["kernel"].shape == (3, 3, 3, 8, 4)
    assert volume_parameters(spacing_mm="2,1,1") == volume_parameters()
    # By default a flat patch is one of thick slices; its spacing says otherwise.
    assert volume_parameters(patch_size="8,64,64") == thick
    assert volume_parameters(patch_size="8,64,64", spacing_mm="1,1,1") == volume_parameters()


@pytest.mark.parametrize("text", ["5,1", "5,1,x", "5,0,1", "5,1,inf", "5 1 1"])
def test_a_mistyped_spacing_is_refused(text):
    refuse("config.spacing_mm.*as in 5,1,1", spacing_mm=text, patch_size="16,16,16")


def test_a_spacing_without_strides_to_choose_is_refused():
    refuse("config.spacing_mm.*config.patch_size", spacing_mm="5,1,1")
    refuse(
        "config.spacing_mm.*'unet'", spacing_mm="5,1,1", patch_size="16,16,16", localiser="phiseg"
    )


def test_options_of_another_head_are_refused():
    refuse("config.std_weight", head="binary", std_weight=2.0)
    refuse("config.num_classes", head="std", num_classes=5)


def test_a_config_from_before_there_were_heads_is_understood():
    config = training_config()
    config.width = 4
    now = jax.eval_shape(build_localiser(config).init, KEY, jnp.zeros((16, 16, 1)))
    for field in ("head", "num_classes", "compute_dtype", "latent_levels"):
        del config[field]
    before = jax.eval_shape(build_localiser(config).init, KEY, jnp.zeros((16, 16, 1)))
    assert now == before


def test_the_summary_counts_parameters_and_operations():
    net = nn.Conv(1, (3, 3), padding="VALID", use_bias=False)
    localiser = Localiser(
        init=lambda key, image: net.init(key, image[None]),
        loss=None,
        sample=lambda variables, key, images, num_samples: net.apply(variables, images)[None],
    )
    found = summarise(localiser, (10, 12, 2))
    assert found.parameters == 18
    assert found.flops == 2 * 18 * 8 * 10
    assert str(found) == "18 parameters, 2.88e-06 GFLOP per image"


@pytest.mark.parametrize(("name", "width"), [("fpi_wrn", 1), ("nsa_resnet18", 8)])
def test_dropout_differs_between_draws_and_is_off_in_a_plain_answer(name, width):
    # A head without a std: whatever differs comes from dropout.
    plain, dropping = (build(name, width=width, head="binary", dropout=p) for p in (0.0, 0.5))
    rng = np.random.default_rng(0)
    image = rng.random((1, 32, 32, 1), np.float32)
    variables = parity.fill(jax.eval_shape(plain.init, KEY, image[0]), rng)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def answers(variables, image):
        ways = (dropping, 2), (dropping, 1), (plain, 1)
        return [localiser.sample(variables, KEY, image, number) for localiser, number in ways]

    draws, off, without = answers(variables, image)
    assert np.abs(draws[0] - draws[1]).max() > 0.01
    assert np.abs(draws - without).max((1, 2, 3, 4)).min() > 0.01
    np.testing.assert_array_equal(off, without)


@pytest.mark.parametrize(("name", "depth"), [("fpi_wrn", 16), ("fpi_wrn", 19), ("nsa_resnet18", 0)])
def test_nothing_passes_by_the_bottleneck(name, depth):
    rng = np.random.default_rng(0)
    images = rng.random((2, 64, 64, 1), np.float32)
    localiser = build(name, width=8 if name == "nsa_resnet18" else 1, depth=depth, head="binary")
    variables = parity.fill(jax.eval_shape(localiser.init, KEY, images[0]), rng)

    shape = (1, 1, 64, 32) if name == "nsa_resnet18" else None

    def closed(path, leaf):
        # The first norm of the decoder, or the kernel from the most channels to half of them.
        shut = {16: "GroupNorm_10", 19: "GroupNorm_12"}.get(depth) == path[1].key
        return np.zeros_like(leaf) if shut or leaf.shape == shape else leaf

    sample = jax.jit(
        lambda variables: localiser.sample(variables, KEY, images, 1)[0],
        compiler_options={"xla_backend_optimization_level": 0},
    )
    one, other = sample(variables)
    assert np.abs(one - other).max() > 0.01
    one, other = sample(jax.tree_util.tree_map_with_path(closed, variables))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("name", "width"), [("fpi_wrn", 1), ("probabilistic_unet", 4)])
def test_learns_one_image_by_heart(name, width):
    # The U-Net and PHiSeg have such tests of their own; the ResNet takes too long for one.
    rng = np.random.default_rng(0)
    image, label = rng.random((1, 32, 32, 1), np.float32), np.zeros((1, 32, 32, 1), np.float32)
    label[:, 8:24, 8:24] = 0.7
    floor = -np.mean(label > 0) * (0.7 * np.log(0.7) + 0.3 * np.log(0.3))
    localiser = build(name, width=width, head="binary")
    optimizer = optax.adam(3e-2)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def step(variables, state, key):
        (_, parts), gradient = jax.value_and_grad(localiser.loss, has_aux=True)(
            variables, key, Anomaly(image, label, label)
        )
        update, state = optimizer.update(gradient, state)
        return optax.apply_updates(variables, update), state, parts["bce"] - floor

    variables = parity.fill(jax.eval_shape(localiser.init, KEY, image[0]), rng)
    state, excess = optimizer.init(variables), []
    for number in range(100):
        variables, state, above = step(variables, state, jax.random.key(number))
        excess.append(above)
    assert excess[0] > 0.2
    assert excess[-1] < 0.01


@pytest.mark.parametrize("name", LOCALISERS)
def test_gradients_in_bfloat16_are_finite(name):
    rng = np.random.default_rng(0)
    image = rng.random((2, 32, 32, 1), np.float32)
    localiser = build(name, compute_dtype="bfloat16", **({"width": 8} if "nsa" in name else {}))
    variables = parity.fill(jax.eval_shape(localiser.init, KEY, image[0]), rng)
    batch = Anomaly(image, image, image)
    gradient = jax.jit(
        jax.grad(lambda v: localiser.loss(v, KEY, batch)[0]),
        compiler_options={"xla_backend_optimization_level": 0},
    )(variables)
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all()
    assert np.mean([np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient)]) > 0.9


def test_bfloat16_answers_are_close_to_float32():
    image = np.random.default_rng(0).random((2, 16, 16, 1), np.float32)
    exact, rough = (
        build("unet", depth=1, compute_dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    variables = jax.eval_shape(exact.init, KEY, image[0])
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda a: (0.3 * rng.normal(size=a.shape)).astype(np.float32), variables
    )
    batch = Anomaly(image, image, image)

    def gradient(localiser):
        return jax.jit(
            jax.grad(lambda v: localiser.loss(v, KEY, batch)[0]),
            compiler_options={"xla_backend_optimization_level": 0},
        )(variables)

    pairs = zip(*[jax.tree.leaves(gradient(one)) for one in (exact, rough)], strict=True)
    for one, other in pairs:
        assert np.isfinite(other).all()
        assert 0 < np.abs(one - other).max() < 0.05 * np.abs(one).max() + 1e-3
