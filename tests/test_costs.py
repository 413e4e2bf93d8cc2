"""Operations and bytes of energies and gradients as the compiler counts them, against the least."""

import jax
import numpy as np
import pytest

import kineticnet_jax as kn
from kineticnet_jax.functionals.learned import LearnedFunctional
from kineticnet_jax.nn.config import network_config
from kineticnet_jax.nn.network import KineticNet


def lowered(function, *arguments):
    """A function's program; of plain arrays, as what `lower` reports on is no dataclass."""
    leaves, structure = jax.tree.flatten(arguments)
    return jax.jit(lambda leaves: function(*jax.tree.unflatten(structure, leaves))).lower(leaves)


def value_and_gradient(energy, density):
    return jax.value_and_grad(lambda density: energy(density))(density)


@pytest.mark.parametrize("functional", ["vw", "tf+vw", "lkt"])
def test_an_energy_is_two_products_with_its_arrays_and_its_gradient_two_more(prepared, functional):
    system = prepared("H2O", level=1)
    energy, density = kn.total_energy(system, functional), kn.initial_density(system, "sad")
    costs = lowered(value_and_gradient, energy, density).compile().cost_analysis()
    arrays = (system.density_basis.on_grid.chunks, system.hartree_operator.chunks)
    assert 4 * arrays[0].size < costs["flops"] < 1.2 * sum(4 * array.size for array in arrays)
    assert costs["bytes accessed"] < 1.2 * sum(2 * array.nbytes for array in arrays)


def test_a_network_is_its_convolutions(molecule):
    """Encoder and decoder, each forward and backward; in one piece, as loops count once."""
    water = molecule("H2O")
    system = kn.prepare(water, grid_level=1, dtype=np.float32)
    config = network_config("small", (1, 8), interactions=0)
    functional = LearnedFunctional(config, KineticNet(config).init(jax.random.key(0)))
    points = len(system.grid.weights)
    bound = functional.bind_traced(water, system.grid, points)
    density = kn.initial_density(system, "sad").on_grid(system)

    def energy(bound, density):
        return value_and_gradient(lambda n: bound(water, system.grid, n), density)

    product = 2 * 3 * points * config.filters.rows * config.channels
    costs = lowered(energy, bound, density).cost_analysis()
    assert 4 * product < costs["flops"] < 1.25 * 4 * product
