"""Densities that an optimization visits; their Kohn-Sham potentials make labels close to them.

What a functional is asked for in an optimization, beside ground states, are the densities on the
way. They have no exact labels, but the ground states in their Kohn-Sham potentials do.
"""

from functools import cache

import jax
import numpy as np
from jaxtyping import Float

from kineticnet_jax import reference
from kineticnet_jax.data.config import DataConfig, Family
from kineticnet_jax.density import initial_density
from kineticnet_jax.functionals.registry import load_functional
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.nn.config import check_elements
from kineticnet_jax.optimize import optimize_density
from kineticnet_jax.system import density_basis_name, prepare

STARTS = ("sad", "minao")
STRIDE = 2
"""Steps from one density to the next."""

load_once = cache(load_functional)


def check_functional(family: Family, molecule: Molecule) -> None:
    """Whether the optimizations of a family can be made.

    Raises:
        InputError: for an unknown functional, or one that does not know the elements.
    """
    if family.visited:
        known = getattr(load_once(family.visited), "elements", None)
        if known is not None:
            check_elements(known, molecule.charges)


def visited_orbitals(
    config: DataConfig, family: Family, molecule: Molecule, count: int
) -> Float[np.ndarray, "count functions"]:
    """Amplitudes of densities on the way from superposed atoms, and from a minimal basis.

    Args:
        config: of the data.
        family: with the functional.
        molecule: a geometry.
        count: number of densities; of each start about half, the start first.

    Returns:
        Coefficients of ψ/√2 in the orbital basis, whose density matrix is twice their product.
    """
    with jax.enable_x64(True):
        system = prepare(molecule, config.basis, config.density_basis, config.grid_level)
        functional, found = load_once(family.visited), []
        for number, start in enumerate(STARTS):
            density = initial_density(system, start)
            for step in range((count - number + 1) // len(STARTS)):
                if step > 0:
                    density = optimize_density(
                        system, functional, config.xc, density, max_steps=STRIDE
                    ).density
                found.append(np.asarray(density.coefficients))
    own_basis = density_basis_name(molecule, config.basis, config.density_basis)
    orbital, own = (reference.build_mole(molecule, name) for name in (config.basis, own_basis))
    transform = reference.overlap_and_kinetic(orbital).transform
    inside = np.stack(found) @ reference.cross_overlap(own, orbital) @ transform
    inside *= np.sqrt(molecule.n_electrons / 2) / np.linalg.norm(inside, axis=1, keepdims=True)
    return inside @ transform.T
