"""The colours of all figures: the colour-blind safe palette of M. Okabe and K. Ito (2008)."""

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"

COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""For curves beside each other, in this order."""
