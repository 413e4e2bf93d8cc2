"""The entry point of `kineticnet`, which is the same as `python -m kineticnet_jax`."""

import os


def main() -> None:
    """Runs the command line without XLA's log."""
    # XLA takes preferences it compiles with for features a processor lacks, and says so at length
    # whenever a kept program is loaded (openxla/xla#44565). It reads this when JAX is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from kineticnet_jax import cli

    cli.main()


if __name__ == "__main__":
    main()
