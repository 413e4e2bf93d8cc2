"""Float64 for all tests, and molecules and systems shared between them."""

import gc
import os
from functools import cache
from pathlib import Path

from compilation import UNOPTIMIZED

# Before PySCF is imported: its threads wait for each other when tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before JAX is: what XLA says of kept programs hides the reports of failed tests.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("XLA_FLAGS", UNOPTIMIZED)

import jax
import pytest
import tiny
from datasets import write_dataset
from geometries import GEOMETRIES

import kineticnet_jax as kn
from kineticnet_jax import cli, cluster

# As on the command line: most of the time goes to tracing.
gc.set_threshold(*cli.FEW_COLLECTIONS)
jax.config.update("jax_enable_x64", True)
# Compiled programs are shared by the workers of a test run and by later runs.
CACHE = Path(__file__).parents[1] / ".pytest_cache" / "xla"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(autouse=True, scope="module")
def few_memory_mappings():
    """Drops compiled programs when there are many; each large one takes thousands of mappings."""
    yield
    cluster.drop_programs_if_many()


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Path of the data set of `tiny`."""
    return write_dataset(tiny.DATA, tmp_path_factory.mktemp("data") / "tiny.h5")


@cache
def make_molecule(name: str) -> kn.Molecule:
    """A molecule of GEOMETRIES."""
    atoms, charge = GEOMETRIES[name]
    return kn.Molecule.from_string(f"{len(atoms.splitlines())}\n\n{atoms}\n", charge)


@cache
def make_system(name: str, basis: str, density_basis: str | None, level: int) -> kn.System:
    """A prepared system, made once for each worker of the test run."""
    return kn.prepare(make_molecule(name), basis, density_basis, level)


@pytest.fixture
def molecule():
    """Returns a molecule by name."""
    return make_molecule


@pytest.fixture
def prepared():
    """Returns a prepared system by the name of its molecule."""

    def prepare(name, basis="cc-pvdz", density_basis=None, level=3):
        return make_system(name, basis, density_basis, level)

    return prepare
