import numpy as np
import pytest
from numpy.testing import assert_allclose

from caal_jax import metrics

RNG = np.random.default_rng(0)
GROUPS = np.array(["b", "a", "b", "c", "a"])
CASES = [(RNG.random(50), RNG.random(50) < 0.3 * (name != "c")) for name in GROUPS]
COUNTS = np.stack([metrics.bin_counts(np.round(s, 2), y, 100) for s, y in CASES])


def test_groups_are_pooled_alone():
    found = metrics.by_group(COUNTS, GROUPS, metrics.average_precision_from_counts)
    assert [*found] == ["a", "b", "c"]
    for name in "ab":
        own = [case for case, group in zip(CASES, GROUPS, strict=True) if group == name]
        scores, labels = (np.concatenate(part) for part in zip(*own, strict=True))
        rounded = np.floor(np.round(scores, 2) * 100)
        assert_allclose(found[name], metrics.average_precision(rounded, labels))
    assert np.isnan(found["c"])
    mean, number = metrics.macro_mean(found)
    assert_allclose(mean, (found["a"] + found["b"]) / 2)
    assert number == 2


def test_nothing_defined():
    mean, number = metrics.macro_mean([np.nan])
    assert np.isnan(mean)
    assert number == 0
    assert np.isnan(metrics.macro_mean([])[0])


@pytest.mark.parametrize(
    ("positives", "name"),
    [(1, "<= 0.1 %"), (10, "<= 0.1 %"), (11, "0.1 to 1 %"), (1000, "1 to 10 %"), (9999, "> 10 %")],
)
def test_sizes(positives, name):
    assert metrics.size_group(positives, 10_000) == name
