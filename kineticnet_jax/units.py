"""Conversion factors for the borders of the package; inside, everything is in atomic units.

Reference: CODATA 2022 recommended values.
"""

BOHR_IN_ANGSTROM = 0.529177210544
HARTREE_IN_EV = 27.211386245981
HARTREE_IN_KCAL_PER_MOL = 627.5094740631
CHEMICAL_ACCURACY = 1.0 / HARTREE_IN_KCAL_PER_MOL
"""1 kcal/mol in hartree: 1.594 mHa."""
