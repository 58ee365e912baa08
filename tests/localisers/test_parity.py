"""The networks against their restatements in PyTorch, with the same weights."""

import jax
import parity
import pytest
from numpy.testing import assert_allclose

QUICK = {"xla_backend_optimization_level": 0}


@pytest.mark.parametrize("name", parity.NAMES)
def test_networks_give_what_their_torch_restatements_gave(name):
    net, variables, inputs = parity.case(name)
    found = jax.tree.leaves(jax.jit(net.apply, compiler_options=QUICK)(variables, *inputs))
    stored = parity.stored_answers()
    expected = [stored[key] for key in stored if key.rpartition(" ")[0] == name]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert other.std() > 0.05
        assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("name", parity.NAMES)
def test_stored_answers_are_those_of_torch(name):
    pytest.importorskip("torch", reason="torch is not installed; pip install '.[torch]'")
    stored = parity.stored_answers()
    for number, array in enumerate(parity.torch_answer(name)):
        assert_allclose(array, stored[f"{name} {number}"], atol=1e-4)
