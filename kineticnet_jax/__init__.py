"""Orbital-free density functional theory with differentiable kinetic energy functionals in JAX."""

import lazy_loader

__version__ = "0.1.0"

# The names are in __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
