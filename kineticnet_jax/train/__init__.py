"""Training of learned functionals."""
