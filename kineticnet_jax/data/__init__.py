"""Reference data: Kohn-Sham ground states in random external potentials.

`run.generate` writes a data set, `Dataset` reads it, and `labels.ground_state_labels` makes fresh
labels inside a jitted program.
"""

from kineticnet_jax.data.config import DataConfig, Family, PotentialKind, load_config
from kineticnet_jax.data.dataset import Dataset, Sample, Samples

__all__ = [
    "DataConfig",
    "Dataset",
    "Family",
    "PotentialKind",
    "Sample",
    "Samples",
    "load_config",
]
