"""Held-out patients."""

import pytest

from caal_jax.data.split import hold_out, read_split
from caal_jax.errors import InputError


def test_share_and_determinism():
    names = [f"p{index}" for index in range(50)]
    held_out = hold_out(names, fraction=0.2, seed=3)
    assert len(held_out) == 10
    assert held_out <= set(names)
    assert held_out == hold_out(reversed(names * 2), fraction=0.2, seed=3)
    assert held_out != hold_out(names, fraction=0.2, seed=4)


@pytest.mark.parametrize(("count", "want"), [(1, 0), (2, 0), (3, 1), (4, 1), (10, 5)])
def test_two_stay_for_training_and_one_is_held_out_if_possible(count, want):
    fraction = 0.01 if count < 10 else 0.5
    assert len(hold_out(map(str, range(count)), fraction=fraction, seed=0)) == want
    assert len(hold_out(map(str, range(count)), fraction=0.99, seed=0)) == max(count - 2, 0)
    assert hold_out(map(str, range(count)), fraction=0, seed=0) == set()


def test_what_is_never_drawn_changes_nothing_else():
    names = [f"p{index}" for index in range(20)]
    drawn = hold_out(names, fraction=0.2, seed=3)
    others = sorted(set(names) - drawn)
    assert hold_out(names, fraction=0.2, seed=3, never=others[:5]) == drawn
    assert not hold_out(names, fraction=0.2, seed=3, never=drawn) & drawn
    assert len(hold_out(names, fraction=0.5, seed=3, never=names[:12])) == 20 - 12 - 2


@pytest.mark.parametrize("fraction", [-0.1, 1, 2])
def test_fraction_out_of_range(fraction):
    with pytest.raises(InputError, match="validation_fraction"):
        hold_out(["a", "b", "c"], fraction=fraction, seed=0)


def test_split_file(tmp_path):
    path = tmp_path / "split.csv"
    assert read_split(path, ("file", "use")) is None
    path.write_bytes(b'\xef\xbb\xbffile,use\r\n"a, b.png",train\r\n')
    assert read_split(path, ("file", "use")) == [{"file": "a, b.png", "use": "train"}]
    with pytest.raises(InputError, match=r"split\.csv: found no column 'label'"):
        read_split(path, ("file", "label", "use"))
    path.write_text("file,use\na.png,val\n")
    with pytest.raises(InputError, match=r"split\.csv line 2: found use 'val'"):
        read_split(path, ("file", "use"))
