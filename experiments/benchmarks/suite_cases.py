"""What the suite measures: families of molecules, functionals, and the cases made of both."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from suite_geometries import alkane, hydrogen_chain, water_cluster

import kineticnet_jax as kn
from kineticnet_jax.functionals.learned import Provenance
from kineticnet_jax.functionals.moments import MomentConfig
from kineticnet_jax.functionals.registry import PRETRAINED, training_conditions

CLOSED_FORM, SMALL_NETWORK, RKS = "closed-form", "small-network", "RKS"
"""Names of the two stand-ins for learned functionals, and of Kohn–Sham calculations alone."""

SHARE = 0.9
"""T_P / T_TF of the stand-in for closed-form functionals; from 0.98 on bounds would bend it."""

COARSE_LEVEL = 2
"""Level of the float32 grid on which optimizations begin."""

TOLERANCE = 3e-5
"""Gradient norm at which they end: energies are within 5e-10 Ha then, those of RKS within 1e-9."""


@dataclass(frozen=True)
class Family:
    """Molecules of one kind.

    Attributes:
        label: with n for the number of units.
        build: the molecule of n units.
        sizes: the numbers of units that are measured.
        fit_from: n from which on exponents are fitted.
        largest_rks: n up to which the Kohn–Sham equations are solved.
    """

    label: str
    build: Callable[[int], kn.Molecule]
    sizes: tuple[int, ...]
    fit_from: int
    largest_rks: int


FAMILIES = {
    "hydrogen": Family("(H2)_n", hydrogen_chain, (1, 2, 4, 8, 16, 32, 64), 8, 64),
    "water": Family("(H2O)_n", water_cluster, (1, 2, 3, 5, 7, 10, 14, 20), 5, 10),
    "alkanes": Family("C_nH_{2n+2}", alkane, (1, 2, 3, 4, 6, 8, 10), 3, 10),
}

PRECISION = (("water", 1), ("alkanes", 1), ("water", 5))
"""Molecules on which float32 is compared with float64."""


@dataclass(frozen=True)
class Case:
    """One measurement, in a process of its own.

    Attributes:
        kind: "cost", "precision", or "kohn-sham" for the memory of a calculation alone.
        system: name of the family.
        size: number of units.
        functional: name or folder.
        xc: exchange-correlation functional.
        basis: orbital basis.
        density_basis: basis of √n, or None for the default.
        grid_level: of both methods.
        cores: number of processors of both.
        seconds: after which nothing is repeated any more.
    """

    kind: str
    system: str
    size: int
    functional: str
    xc: str = "blyp"
    basis: str = "cc-pvdz"
    density_basis: str | None = None
    grid_level: int = 3
    cores: int = 1
    seconds: float = 20.0

    @property
    def molecule(self) -> kn.Molecule:
        """Charges and positions."""
        return FAMILIES[self.system].build(self.size)

    def is_case_of(self, row: dict[str, Any]) -> bool:
        """Whether a row of results is of this case; how long it was repeated does not matter."""
        mine = asdict(self)
        del mine["seconds"]
        return all(row.get(name) == value for name, value in mine.items())


def default_functionals() -> tuple[str, ...]:
    """Names of all functionals of the suite."""
    return ("tf+vw", "vw", CLOSED_FORM, SMALL_NETWORK, *PRETRAINED)


def make_functional(name: str, molecule: kn.Molecule, random_head: bool = False) -> kn.Functional:
    """A functional by name; the stand-ins are made for the elements of the molecule.

    Nothing trained covers all molecules of the suite. The stand-ins have the size, and so the
    cost, of what is trained, with parameters for which they are known functionals whose
    optimizations converge: only T_TF counts of the features of the closed form, and the last
    layer of the network, all zero, leaves a constant times T_TF.

    Args:
        name: as for `load_functional`, or of a stand-in.
        molecule: whose elements count.
        random_head: leaves the last layer of the network random: energies then depend on all of
            it, as those of a trained one do.
    """
    elements = tuple(sorted({int(charge) for charge in molecule.charges}))
    if name == CLOSED_FORM:
        config = MomentConfig(elements)
        coefficients = SHARE * (np.array(config.names) == "T_TF")
        return kn.LearnedFunctional(
            moments=config, coefficients=coefficients, provenance=Provenance(name)
        )
    if name == SMALL_NETWORK:
        network = kn.network_config("small", elements)
        params = kn.KineticNet(network).init(jax.random.key(0))
        if not random_head:
            params["head"][-1] = jax.tree.map(jnp.zeros_like, params["head"][-1])
        return kn.LearnedFunctional(network, params, provenance=Provenance(name))
    return kn.load_functional(name)


def covers(functional: kn.Functional | None, molecule: kn.Molecule) -> bool:
    """Whether a functional, or a stand-in for None, can be used for a molecule.

    With vw all electrons are in one orbital, so it is for two electrons only.
    """
    if getattr(functional, "name", None) == "vw":
        return molecule.n_electrons == 2
    elements = getattr(functional, "elements", None)
    return elements is None or {int(charge) for charge in molecule.charges} <= set(elements)


def make_cases(
    systems: Sequence[str],
    functionals: Sequence[str],
    largest: int | None,
    precision: bool,
    settings: Case,
) -> Iterator[Case]:
    """All cases of some families and functionals, the small molecules first.

    Args:
        systems: names of families.
        functionals: names or folders.
        largest: number of units beyond which nothing is measured, or None for all.
        precision: whether float32 is compared with float64.
        settings: whose level, cores and seconds all cases have.

    Raises:
        InputError: for an unknown functional.
    """
    sizes = sorted(
        (size, system)
        for system in systems
        for size in FAMILIES[system].sizes
        if largest is None or size <= largest
    )
    known = {
        name: None if name in (CLOSED_FORM, SMALL_NETWORK) else kn.load_functional(name)
        for name in functionals
    }
    kohn_sham = set()
    for size, system in sizes:
        molecule = FAMILIES[system].build(size)
        for name, functional in known.items():
            if not covers(functional, molecule):
                continue
            trained = {} if functional is None else training_conditions(functional)
            case = replace(
                settings,
                kind="cost",
                system=system,
                size=size,
                functional=name,
                xc=trained.get("xc", settings.xc),
                basis=trained.get("basis", settings.basis),
                density_basis=trained.get("density basis"),
            )
            alone = replace(case, kind="kohn-sham", functional=RKS, density_basis=None)
            if alone not in kohn_sham and size <= FAMILIES[system].largest_rks:
                kohn_sham.add(alone)
                yield alone
            yield case
            if precision and (system, size) in PRECISION:
                yield replace(case, kind="precision")
