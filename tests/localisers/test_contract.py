"""What every localiser promises, and how a config names one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
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


@pytest.mark.parametrize(("name", "head"), [*zip(LOCALISERS, reversed(HEADS), strict=True)])
def test_localisers_take_any_head(name, head):
    *_, losses, samples = shapes_of(build(name, head=head), (1, 16, 16, 1), num_samples=2)
    extra = {"kl"} if name in ("phiseg", "probabilistic_unet") else set()
    assert losses.keys() == {"loss"} | HEADS[head]().weights.keys() | extra
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
    ],
)
def test_options_that_a_localiser_does_not_have_are_refused(localiser, option, value):
    refuse(rf"config.{option}: found {value}; expected", localiser=localiser, **{option: value})


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
