"""Which task makes which batch: the words of a config, and the draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from caal_jax.errors import InputError
from caal_jax.synthesis import TASKS
from caal_jax.synthesis.mixture import pick_task, read_mixture

KNOWN = ("cutpaste", "fpi", "nsa", "pii")


def picked(text, step, *, number=4000):
    """How often each of KNOWN is drawn at a step, (4,)."""
    mixture = read_mixture(text, KNOWN)
    pick = jax.jit(jax.vmap(lambda key: pick_task(key, mixture, np.uint32(step))))
    found = np.asarray(pick(jax.random.split(jax.random.key(step), number)))
    counts = dict(zip(mixture.names, np.bincount(found, minlength=len(mixture.names)), strict=True))
    return np.array([counts.get(name, 0) for name in KNOWN])


@pytest.mark.parametrize(
    ("text", "names", "starts", "shares"),
    [
        ("fpi", ("fpi",), [0], [[1]]),
        # The order is that of the known tasks, whatever the order of the words.
        ("nsa+fpi", ("fpi", "nsa"), [0], [[0.5, 0.5]]),
        ("fpi*2+nsa", ("fpi", "nsa"), [0], [[2 / 3, 1 / 3]]),
        ("fpi*.25+nsa*0.75", ("fpi", "nsa"), [0], [[0.25, 0.75]]),
        ("fpi*3. + nsa * 1", ("fpi", "nsa"), [0], [[0.75, 0.25]]),
        ("fpi+nsa+fpi", ("fpi", "nsa"), [0], [[2 / 3, 1 / 3]]),
        ("fpi*0+nsa", ("fpi", "nsa"), [0], [[0, 1]]),
        (
            "cutpaste,500@fpi*2+nsa, 1500@nsa",
            ("cutpaste", "fpi", "nsa"),
            [0, 500, 1500],
            [[1, 0, 0], [0, 2 / 3, 1 / 3], [0, 0, 1]],
        ),
    ],
)
def test_the_words_of_a_config(text, names, starts, shares):
    found = read_mixture(text, KNOWN)
    assert found.names == names
    assert_array_equal(found.starts, starts)
    assert_allclose(found.shares, shares, rtol=1e-15)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "''"),
        ("fpl", "'fpl'"),
        ("FPI", "'FPI'"),
        ("fpi+", "''"),
        ("fpi**2", r"'fpi\*\*2'"),
        ("2*fpi", r"'2\*fpi'"),
        ("fpi*-1+nsa", r"'fpi\*-1'"),
        ("fpi*two", r"'fpi\*two'"),
        ("fpi*1e3", r"'fpi\*1e3'"),
        ("fpi*0", "no weight above 0 in 'fpi\\*0'"),
        ("nsa,100@fpi*0+nsa*0.0", "no weight above 0"),
        ("0@fpi", "stage '0@fpi'"),
        ("fpi,nsa", "stage 'nsa'"),
        ("fpi,@nsa", "stage '@nsa'"),
        ("fpi,ten@nsa", "stage 'ten@nsa'"),
        ("fpi,-5@nsa", "stage '-5@nsa'"),
        ("fpi,5@6@nsa", "stage '5@6@nsa'"),
        ("fpi,0@nsa", r"steps \[0, 0\]"),
        ("fpi,20@nsa,10@pii", r"steps \[0, 20, 10\]"),
    ],
)
def test_what_cannot_be_read_is_quoted_and_the_tasks_are_listed(text, found):
    with pytest.raises(InputError, match=found) as raised:
        read_mixture(text, KNOWN)
    told = str(raised.value)
    assert told.startswith("config.task")
    assert "cutpaste, fpi, nsa, pii" in told
    assert "'fpi*2+nsa'" in told


def test_every_task_can_be_named():
    mixture = read_mixture("+".join(sorted(TASKS)), TASKS)
    assert mixture.names == tuple(TASKS)
    assert_allclose(mixture.shares, 1 / len(TASKS))


def test_tasks_are_drawn_by_their_shares():
    counts = picked("pii*5+cutpaste*2+fpi*0+nsa", 0)
    assert counts[1] == 0
    share = np.array([2, 1, 5]) / 8
    assert stats.chisquare(counts[[0, 2, 3]], share * counts.sum()).pvalue > 1e-3


def test_a_schedule_switches_at_its_steps():
    text = "cutpaste,500@fpi+nsa,1500@pii"
    for step, names in ((0, [0]), (499, [0]), (500, [1, 2]), (1499, [1, 2]), (1500, [3])):
        assert_array_equal(np.flatnonzero(picked(text, step, number=64)), names, str(step))
    assert_array_equal(np.flatnonzero(picked(text, 10**9, number=64)), [3])


def test_the_key_alone_decides():
    mixture = read_mixture("fpi+nsa+pii,10@fpi+nsa+pii", KNOWN)
    keys = jax.random.split(jax.random.key(0), 32)
    pick = jax.jit(lambda key, step: pick_task(key, mixture, step))
    first = [int(pick(key, np.uint32(0))) for key in keys]
    # The second stage has the same shares and so draws the same.
    for step in (9, 10):
        assert [int(pick(key, np.uint32(step))) for key in keys] == first
    assert int(pick_task(keys[0], mixture, 0)) == first[0]
    assert set(first) == {0, 1, 2}


def test_no_draw_falls_to_a_task_without_a_share(monkeypatch):
    # In float32 these shares add up to less than the largest number that `uniform` draws.
    mixture = read_mixture("a*9+b*8+c*5+d*9,7@e", "abcde")
    monkeypatch.setattr(jax.random, "uniform", lambda key: jnp.float32(1 - 2.0**-23))
    assert int(pick_task(jax.random.key(0), mixture, 6)) == 3
    assert int(pick_task(jax.random.key(0), mixture, 7)) == 4
