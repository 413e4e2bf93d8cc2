"""PySCF, on the host and for set-up only; everything returned is a plain array.

No other part of the package imports PySCF.
"""

from kineticnet_jax.reference.basis_sets import (
    AUXILIARY as AUXILIARY,
)
from kineticnet_jax.reference.basis_sets import (
    EVEN_TEMPERED as EVEN_TEMPERED,
)
from kineticnet_jax.reference.basis_sets import (
    build_mole as build_mole,
)
from kineticnet_jax.reference.basis_sets import (
    extract_basis as extract_basis,
)
from kineticnet_jax.reference.basis_sets import (
    known_bases as known_bases,
)
from kineticnet_jax.reference.integrals import (
    inverse_coulomb_root as inverse_coulomb_root,
)
from kineticnet_jax.reference.integrals import (
    overlap_and_kinetic as overlap_and_kinetic,
)
from kineticnet_jax.reference.kohn_sham import (
    GUESSES as GUESSES,
)
from kineticnet_jax.reference.kohn_sham import (
    KohnSham as KohnSham,
)
from kineticnet_jax.reference.kohn_sham import (
    guess_density_matrix as guess_density_matrix,
)
from kineticnet_jax.reference.kohn_sham import (
    kohn_sham as kohn_sham,
)
