"""Products of features against those of e3nn."""

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kineticnet_jax.nn.interaction import couplings, natural_irreps


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_products_are_those_of_e3nn(degree):
    irreps = natural_irreps(1, degree)
    left, right = (
        e3nn.IrrepsArray(irreps, jax.random.normal(key, (5, irreps.dim)))
        for key in jax.random.split(jax.random.key(0))
    )
    expected = e3nn.tensor_product(left, right, filter_ir_out=[ir for _, ir in irreps])
    products, coupling = couplings(degree)
    assert products == expected.irreps
    found = jnp.einsum("ni,nj,ijk->nk", left.array, right.array, coupling)
    np.testing.assert_allclose(found, expected.array, rtol=0, atol=1e-13)
