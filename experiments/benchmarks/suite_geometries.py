"""Molecules of any size for the suite: chains of H2, pieces of ice, all-trans alkanes.

All are functions of the number of units alone.
"""

import itertools

import numpy as np

import kineticnet_jax as kn
from kineticnet_jax.units import BOHR_IN_ANGSTROM

HYDROGEN_BOND, HYDROGEN_REPEAT = 0.74, 2.74
"""Length of H2, and of a unit of the chain, in Å."""

OXYGEN_DISTANCE, OXYGEN_HYDROGEN, WATER_ANGLE = 2.76, 0.9572, np.radians(104.52)
"""Distance of neighbours in ice and the shape of a free molecule, in Å."""

CARBON_CARBON, CARBON_HYDROGEN, TETRAHEDRON = 1.53, 1.09, np.arccos(-1 / 3)
"""Shape of the alkanes in Å; all their angles are tetrahedral."""

ARRANGEMENTS = 40
"""Proton arrangements of a piece of ice that are tried for the smallest dipole."""

# Of one of the two sublattices of diamond to its neighbours, which see it the other way round.
_BONDS = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
_PAIRS = tuple(itertools.combinations(range(4), 2))

Site = tuple[int, int, int]


def hydrogen_chain(units: int) -> kn.Molecule:
    """(H2)_n on a line, with 2 Å between one molecule and the next."""
    first = HYDROGEN_REPEAT * np.arange(units)
    z = np.stack([first, first + HYDROGEN_BOND], axis=1).reshape(-1)
    return _molecule(["H"] * len(z), np.stack([0 * z, 0 * z, z], axis=1))


def water_cluster(molecules: int) -> kn.Molecule:
    """(H2O)_n cut from cubic ice, with one proton between any two neighbours (the ice rules).

    Of several random arrangements of the protons the one with the smallest dipole is taken: in
    clusters that are large dipoles Kohn–Sham calculations do not converge.
    """
    sites = _connected_sites(molecules)
    generator = np.random.default_rng(molecules)
    arrangements = [_protons(sites, generator) for _ in range(ARRANGEMENTS)]
    polar = [np.linalg.norm(_directions(sites, pairs).sum(axis=(0, 1))) for pairs in arrangements]
    arms = _directions(sites, arrangements[int(np.argmin(polar))])
    bisector, across = arms[:, 0] + arms[:, 1], arms[:, 0] - arms[:, 1]
    bisector /= np.linalg.norm(bisector, axis=1, keepdims=True)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    along = OXYGEN_HYDROGEN * np.cos(WATER_ANGLE / 2) * bisector
    aside = OXYGEN_HYDROGEN * np.sin(WATER_ANGLE / 2) * across
    oxygen = np.array(sites) * OXYGEN_DISTANCE / np.sqrt(3)
    atoms = np.stack([oxygen, oxygen + along + aside, oxygen + along - aside], axis=1)
    return _molecule(["O", "H", "H"] * molecules, atoms.reshape(-1, 3))


def alkane(carbons: int) -> kn.Molecule:
    """C_nH_{2n+2} with all carbon atoms in one plane (all-trans)."""
    half = TETRAHEDRON / 2
    index = np.arange(-1, carbons + 1)
    side = (-1.0) ** index
    # With the atoms before the first and after the last, towards which the end hydrogens point.
    chain = CARBON_CARBON * np.stack(
        [index * np.sin(half), 0 * index, side * np.cos(half) / 2], axis=1
    )
    hydrogens = []
    for i in range(1, carbons + 1):
        for y in (-1, 1):
            arm = np.array([0, y * np.sin(half), side[i] * np.cos(half)])
            hydrogens.append(chain[i] + CARBON_HYDROGEN * arm)
    for end, beyond in ((1, 0), (carbons, carbons + 1)):
        bond = (chain[beyond] - chain[end]) / CARBON_CARBON
        hydrogens.append(chain[end] + CARBON_HYDROGEN * bond)
    symbols = ["C"] * carbons + ["H"] * len(hydrogens)
    return _molecule(symbols, np.concatenate([chain[1:-1], hydrogens]))


def _molecule(symbols: list[str], angstrom: np.ndarray) -> kn.Molecule:
    return kn.Molecule.create(symbols, angstrom / BOHR_IN_ANGSTROM)


def _neighbors(site: Site) -> list[Site]:
    """The four neighbours of a site of diamond, whose bonds are (±1, ±1, ±1)."""
    first = sum(site) % 4 == 0
    return [tuple(int(x) for x in site + (bond if first else -bond)) for bond in _BONDS]


def _connected_sites(count: int) -> list[Site]:
    """Grows a cluster by the site nearest to the middle of its first bond."""
    sites: list[Site] = [(0, 0, 0)]
    while len(sites) < count:
        border = {site for known in sites for site in _neighbors(known)} - set(sites)
        sites.append(min(border, key=lambda site: (np.sum((np.array(site) - 0.5) ** 2), site)))
    return sites


def _protons(sites: list[Site], generator: np.random.Generator) -> list[tuple[int, int]]:
    """Two of its four bonds for each site, such that each inner bond is chosen by one end."""
    place = {site: i for i, site in enumerate(sites)}
    chosen: list[tuple[int, int]] = []

    def fits(i: int, pair: tuple[int, int]) -> bool:
        earlier = [(bond, place.get(other, i)) for bond, other in enumerate(_neighbors(sites[i]))]
        return all((bond in pair) != (bond in chosen[j]) for bond, j in earlier if j < i)

    def extend() -> bool:
        i = len(chosen)
        if i == len(sites):
            return True
        for number in generator.permutation(len(_PAIRS)):
            if fits(i, _PAIRS[number]):
                chosen.append(_PAIRS[number])
                if extend():
                    return True
                chosen.pop()
        return False

    assert extend(), "a piece of ice always has an arrangement"
    return chosen


def _directions(sites: list[Site], pairs: list[tuple[int, int]]) -> np.ndarray:
    """Of the protons of each site, shape (sites, 2, 3)."""
    return np.array(
        [
            [np.subtract(_neighbors(site)[bond], site) for bond in pair]
            for site, pair in zip(sites, pairs, strict=True)
        ],
        dtype=float,
    )
