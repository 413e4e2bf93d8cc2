"""`python -m kineticnet_jax` is the same as `kineticnet`."""

from kineticnet_jax.cli import main

main()
