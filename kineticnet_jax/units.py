"""Conversion factors for the borders of the package; inside, everything is in atomic units.

Reference: CODATA 2022 recommended values.
"""

BOHR_IN_ANGSTROM = 0.529177210544

CHEMICAL_ACCURACY_IN_MILLIHARTREE = 1.594
"""1 kcal/mol."""
