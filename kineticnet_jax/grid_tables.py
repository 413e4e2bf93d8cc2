"""Published parameters of molecular quadrature grids, by nuclear charge (index 0 is unused)."""

# fmt: off
BRAGG_RADII = (
    0.00,
    0.35, 0.60,
    1.45, 1.05, 0.85, 0.70, 0.65, 0.60, 0.50, 0.70,
    1.80, 1.50, 1.25, 1.10, 1.00, 1.00, 1.00, 1.00,
    2.20, 1.80, 1.60, 1.40, 1.35, 1.40, 1.40, 1.40, 1.35,
    1.35, 1.35, 1.35, 1.30, 1.25, 1.15, 1.15, 1.15, 1.15,
    2.35, 2.00, 1.80, 1.55, 1.45, 1.45, 1.35, 1.30, 1.35,
    1.40, 1.60, 1.55, 1.55, 1.45, 1.45, 1.40, 1.40, 1.40,
)
"""Atomic radii in ångström. J. C. Slater, J. Chem. Phys. 41, 3199 (1964); 0.35 Å for hydrogen as in
A. D. Becke, J. Chem. Phys. 88, 2547 (1988). Noble gases have no Bragg radius: theirs continue the
row. The van der Waals radii that other programs use instead (1.40 Å for helium) push the boundary
into the neighbour and cost HeH+ 0.09 mHa in the external energy at level 3, against 0.0001 here."""

TREUTLER_XI = (
    0.00,
    0.80, 0.90,
    1.80, 1.40, 1.30, 1.10, 0.90, 0.90, 0.90, 0.90,
    1.40, 1.30, 1.30, 1.20, 1.10, 1.00, 1.00, 1.00,
    1.50, 1.40, 1.30, 1.20, 1.20, 1.20, 1.20, 1.20, 1.20,
    1.10, 1.10, 1.10, 1.10, 1.00, 0.90, 0.90, 0.90, 0.90,
    2.00, 1.70, 1.50, 1.50, 1.35, 1.35, 1.25, 1.20, 1.25,
    1.30, 1.50, 1.50, 1.30, 1.20, 1.20, 1.15, 1.15, 1.15,
)
"""Radial scale ξ in bohr. O. Treutler, R. Ahlrichs, J. Chem. Phys. 102, 346 (1995), table 1."""

NOBLE_GASES = (2, 10, 18, 36, 54)
"""Last nuclear charge of each period."""

RADIAL_SIZES = (
    (10, 15, 20, 30, 35),
    (30, 40, 50, 60, 65),
    (40, 60, 65, 75, 80),
    (50, 75, 80, 90, 95),
    (60, 90, 95, 105, 110),
    (70, 105, 110, 120, 125),
)
"""Number of radii for each level and period, the sizes of PySCF's levels 0 to 5."""

ANGULAR_ORDERS = (
    (11, 15, 17, 17, 17),
    (17, 23, 23, 23, 23),
    (23, 29, 29, 29, 29),
    (29, 29, 35, 35, 35),
    (35, 41, 41, 41, 41),
    (41, 47, 47, 47, 47),
)
"""Largest Lebedev order for each level and period, the sizes of PySCF's levels 0 to 5."""

PRUNING_RADII = (
    (0.2500, 0.5, 1.0, 4.5),
    (0.1667, 0.5, 0.9, 3.5),
    (0.1000, 0.4, 0.8, 2.5),
)
"""Zone boundaries in units of the Bragg radius, for the first, second and later periods; the zones
of NWChem and PySCF, after P. M. W. Gill, B. G. Johnson, J. A. Pople, Chem. Phys. Lett. 209, 506
(1993)."""
# fmt: on
