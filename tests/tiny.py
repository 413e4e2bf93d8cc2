"""A data set and networks that are small enough for every test."""

import dataclasses

import jax
import numpy as np

from kineticnet_jax.data.config import DataConfig, Family
from kineticnet_jax.functionals.learned import LearnedFunctional
from kineticnet_jax.nn.convolution import Filters
from kineticnet_jax.nn.network import KineticNet
from kineticnet_jax.train.config import NetworkChoice

H2 = Family("H2", "H\nH 1 r", 10, variables={"r": (0.6, 1.2)})
HE = Family("He", "He", 10)
DATA = DataConfig("tiny", (H2, HE), potentials_per_geometry=3, grid_level=1, basis="6-31g")
NETWORK = NetworkChoice(
    "tiny",
    filters=Filters((4, 2), last=50.0),
    channels=4,
    features=4,
    interactions=1,
    hidden=4,
    vectors=2,
)


def random_functional(target, inputs, dtype=np.float64, **changes):
    """A network of random parameters for H and He, in anything but its size like a real one."""
    network = dataclasses.replace(NETWORK, inputs=inputs, **changes).config((1, 2), target)
    params = KineticNet(network).init(jax.random.key(3))
    return LearnedFunctional(network, jax.tree.map(lambda x: x.astype(dtype), params))
