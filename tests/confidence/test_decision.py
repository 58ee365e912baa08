import functools

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from caal_jax.confidence.decision import (
    conformal_p_value,
    image_score,
    image_threshold,
    verdict,
    volume_score,
)
from caal_jax.errors import InputError

RNG = np.random.default_rng(0)
MAPS = RNG.random((4, 20, 30)).astype(np.float32)
FOREGROUND = np.stack([RNG.random((20, 30)) < share for share in (0.9, 0.3, 0.01, 0)])


def literal_score(scores, foreground, q):
    inside = sorted(np.float64(scores[foreground]))
    count = int(np.ceil(q * len(inside)))
    return np.mean(inside[-count:]) if inside else 0.0


@pytest.mark.parametrize("q", [0.01, 0.25, 1.0])
@pytest.mark.parametrize("lifted", ["eager", "jit", "vmap"])
def test_image_score_matches_its_definition(q, lifted):
    score = functools.partial(image_score, q=q)
    if lifted == "vmap":
        found = jax.jit(jax.vmap(score))(MAPS, FOREGROUND)
    else:
        one = jax.jit(score) if lifted == "jit" else score
        found = [one(m, f) for m, f in zip(MAPS, FOREGROUND, strict=True)]
    want = [literal_score(m, f, q) for m, f in zip(MAPS, FOREGROUND, strict=True)]
    assert_allclose(found, want, rtol=1e-5)


def test_image_score_ignores_the_background():
    for shift in (0, -3):  # maps may be logits
        maps = MAPS + np.float32(shift)
        loud = np.where(FOREGROUND, maps, 5.0).astype(np.float32)
        assert_allclose(image_score(loud, FOREGROUND), image_score(maps, FOREGROUND), rtol=0)
    few = np.zeros(MAPS.shape, bool)
    few[0, 0, 0] = True
    assert_allclose(image_score(MAPS - 3, few, q=0.9), MAPS[0, 0, 0] - 3, rtol=1e-6)


def test_volume_score_is_the_same_on_the_host():
    for q in (0.01, 0.25, 1.0):
        want = literal_score(MAPS, FOREGROUND, q)
        assert_allclose(volume_score(MAPS, FOREGROUND, q=q), want, rtol=1e-12)
        assert_allclose(image_score(MAPS, FOREGROUND, q=q), want, rtol=1e-5)
    assert volume_score(MAPS, np.zeros(MAPS.shape, bool)) == 0


def test_threshold_by_hand():
    assert image_threshold(np.arange(19), false_positive_rate=0.05) == (18, 0.05)
    assert image_threshold(np.arange(99)[::-1], false_positive_rate=0.1) == (89, 0.1)
    # In floats 150 * (1 - 0.18) is above 123 by a hair.
    assert image_threshold(np.arange(149), false_positive_rate=0.18) == (122, 27 / 150)
    # 100 scores: k = ceil(95.95) = 96, which keeps 5 / 101.
    assert image_threshold(np.arange(100)) == (95, 5 / 101)
    # Too few for 5 %: the largest, and what it does keep.
    assert image_threshold([3, 1, 2]) == (3, 1 / 4)


def test_threshold_keeps_its_promise():
    # 4,000 worlds, each with 39 held-out scores and one new healthy image.
    scores = RNG.standard_cauchy((4000, 40))
    exceeded = [
        world[-1] > image_threshold(world[:-1], false_positive_rate=0.1).threshold
        for world in scores
    ]
    assert 0.08 < np.mean(exceeded) < 0.12
    ties = np.round(scores / 5)
    exceeded = [w[-1] > image_threshold(w[:-1], false_positive_rate=0.1).threshold for w in ties]
    assert np.mean(exceeded) < 0.1


def test_p_value():
    assert conformal_p_value(5, [1, 2, 3]) == 1 / 4
    assert conformal_p_value(2, [1, 2, 3]) == 3 / 4
    assert conformal_p_value(0, [1, 2, 3]) == 1
    scores = RNG.random((4000, 20))
    p = np.array([conformal_p_value(world[0], world[1:]) for world in scores])
    assert (p <= 0.1).mean() < 0.12
    # Threshold and p-value tell the same story.
    threshold = image_threshold(scores[0], false_positive_rate=0.2).threshold
    for score in np.linspace(0, 1, 101):
        assert (score > threshold) == (conformal_p_value(score, scores[0]) <= 0.2)


@pytest.mark.parametrize(
    ("score", "score_std", "z", "want"),
    [
        (0.6, 0.05, 1.0, "abnormal"),
        (0.4, 0.05, 1.0, "normal"),
        (0.6, 0.2, 1.0, "abstain"),
        (0.4, 0.2, 1.0, "abstain"),
        (0.6, 0.2, 0.0, "abnormal"),
        (0.6, 0.08, 2.0, "abstain"),
        (0.5, 0.0, 1.0, "normal"),
    ],
)
def test_verdict(score, score_std, z, want):
    assert verdict(score, threshold=0.5, score_std=score_std, z=z) == want


def test_unusable_scores_are_told():
    for scores in ([], [np.nan], [0.1, np.inf]):
        with pytest.raises(InputError, match="healthy_scores"):
            image_threshold(scores)
        with pytest.raises(InputError, match="healthy_scores"):
            conformal_p_value(0.5, scores)
