import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from caal_jax.confidence.views import SHIFT_PX, VIEWS, look, look_back, read_views
from caal_jax.errors import InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.random((2, 7, 9, 3)).astype(np.float32)
EVERY = read_views("flips+shifts+mirror")


def literal(view, image):
    """The view of one image (H, W, C) in NumPy, a pixel at a time."""
    height, width = image.shape[:2]
    seen = np.empty_like(image)
    for row in range(height):
        for column in range(width):
            r = height - 1 - row if view[0] else row
            c = width - 1 - column if view[1] else column
            seen[(r + view[2]) % height, (c + view[3]) % width] = image[row, column]
    return seen


def test_views_by_name():
    assert read_views("none").tolist() == [[0, 0, 0, 0]]
    assert read_views("mirror").tolist() == [[0, 0, 0, 0], [0, 1, 0, 0]]
    assert len(read_views("flips")) == 4
    assert len(read_views("shifts")) == 5
    assert len(EVERY) == len({tuple(view) for view in EVERY}) == 8
    assert EVERY[0].tolist() == [0, 0, 0, 0]
    assert SHIFT_PX % 2
    with pytest.raises(InputError, match=r"config.augment.*'shifts\+flip'.*'mirror'"):
        read_views("shifts+flip")
    assert set(VIEWS) == {"none", "mirror", "flips", "shifts"}


@pytest.mark.parametrize("lift", ["eager", "jit", "vmap"])
def test_a_view_is_what_a_loop_makes_and_goes_back_exactly(lift):
    there, back = look, look_back
    if lift == "jit":  # the view is traced: one program serves all of them
        there, back = jax.jit(look), jax.jit(look_back)
    elif lift == "vmap":
        there, back = (jax.vmap(one, (None, 0)) for one in (look, look_back))
    for view in EVERY:
        seen = there(jnp.asarray(view), IMAGES)
        assert_array_equal(seen, [literal(view, image) for image in IMAGES])
        assert_array_equal(back(jnp.asarray(view), seen), IMAGES)


def test_volumes_keep_the_order_of_their_slices():
    volume = RNG.random((1, 4, 7, 9, 1)).astype(np.float32)
    for view in EVERY:
        seen = look(jnp.asarray(view), volume)
        assert_array_equal(seen[0], [literal(view, one) for one in volume[0]])
        assert_array_equal(look_back(jnp.asarray(view), seen), volume)
