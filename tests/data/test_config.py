"""Configurations of data sets: what is read, and one-line errors for what makes no sense."""

from pathlib import Path

import numpy as np
import pytest

from kineticnet_jax.data.config import config_from_json, load_config
from kineticnet_jax.data.geometries import draw_geometries, middle_geometry
from kineticnet_jax.errors import InputError

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"
H2 = """
name = "test"
[[families]]
name = "H2"
zmatrix = \"\"\"
H
H 1 r\"\"\"
variables = { r = [0.4, 3.0] }
geometries = 20
"""


@pytest.fixture
def load(tmp_path):
    """Returns a configuration from the text of its file."""

    def read(text):
        path = tmp_path / "config.toml"
        path.write_text(text)
        return load_config(path)

    return read


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_ready_configurations(path):
    config = load_config(path)
    assert config.name == path.stem
    assert config_from_json(config.to_json()) == config
    tasks = draw_geometries(config)
    assert len(tasks) == sum(family.geometries for family in config.families)
    electrons = {"two-electron": {2}, "ten-electron": {10}}.get(path.stem)
    if electrons:
        assert {task.molecule.n_electrons for task in tasks} == electrons
    for family in config.families:
        assert middle_geometry(family).n_electrons % 2 == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name = ", "nam = "), "unknown key in the configuration 'nam': did you mean 'name'"),
        (("geometries", "geometry"), "did you mean 'geometries'"),
        (("20", "0"), "geometries must be at least 1, but is 0"),
        (("20", "2.5"), "'geometries' must be of type int, but is 2.5"),
        (("20", "true"), "'geometries' must be of type int"),
        (("[0.4, 3.0]", "[3.0, 0.4]"), "the range of 'r' must ascend, but is 3 to 0.4"),
        (("[0.4, 3.0]", "[0.15, 0.2]"), "two nuclei were always closer than 0.25 Å"),
        (("[0.4, 3.0]", "[-1.0, -0.5]"), "the bond length 'r' must be positive, but starts at -1"),
        (('"H2"', '"H2/D2"'), "must not be empty or contain '/'"),
        (("[0.4, 3.0]", "[0.4]"), "'r' must have 2 entries, but has 1"),
        (("r = [", "s = ["), "variable 's' does not occur in the zmatrix"),
        (("H 1 r", "H 2 r"), "zmatrix cannot be read"),
        (("H 1 r", "Hx 1 r"), "unknown element 'Hx'"),
        (("H 1 r", "He 1 r"), "an even, positive number of electrons"),
        (('name = "test"', 'name = "test"\nxc = "b3lyp"'), "unknown xc functional 'b3lyp'"),
        (('name = "test"', 'name = "test"\nmode = "oneshot"'), "did you mean 'one-shot'"),
        (('name = "test"', 'name = "test"\ngrid_level = 9'), "grid_level must be 0 to 5"),
        (('name = "test"', 'name = "test"\nseed = -1'), "seed must not be negative"),
        (("20", "20\n[splits]\ntrain = 0.5"), "the splits must add up to 1"),
        (("20", '20\n[[potentials]]\nname = "x"\nwidths = [3, 1]'), "widths must be an ascending"),
        (("20", '20\n[[potentials]]\nname = "x"\nfield = -1'), "must not be negative"),
        (("20", '20\n[[potentials]]\nname = "x"\nweight = 0'), "must have a positive weight"),
        (("20", '20\n[[potentials]]\nname = "x"\nfield = inf'), "'field' must be a finite number"),
        (("[[families]]", "[families]"), "'families' must be of type list"),
    ],
)
def test_what_makes_no_sense(load, change, message):
    with pytest.raises(InputError) as error:
        draw_geometries(load(H2.replace(*change)))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "empty"), ("# nothing", "empty"), ("name", "not TOML"), ('name = "x"', "families")],
)
def test_files_that_are_no_configuration(load, text, message):
    with pytest.raises(InputError, match=message):
        load(text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_config(tmp_path / "none.toml")


def test_geometries_are_reproducible_and_independent_of_other_families(load):
    first = draw_geometries(load(H2))
    again = draw_geometries(load(H2 + H2.split("\n", 2)[2].replace('"H2"', '"other"')))
    other_seed = draw_geometries(load(H2.replace('"test"', '"test"\nseed = 1')))
    for a, b, c in zip(first, again, other_seed, strict=False):
        np.testing.assert_array_equal(a.molecule.positions, b.molecule.positions)
        assert (a.seed, a.split) == (b.seed, b.split)
        assert a.seed != c.seed
    assert [task.split for task in first].count("train") == 16
    assert [task.split for task in first].count("test") == 2


def test_distortions_of_a_geometry(load):
    """Cartesian noise and thermal motion have the widths asked for; rotation moves nothing else."""
    water = '[[families]]\nname = "H2O"\nzmatrix = "O\\nH 1 0.96\\nH 1 0.96 2 104.5"\n'
    water += "geometries = 400\n"
    still = draw_geometries(load('name = "w"\n' + water))
    bonds = [np.linalg.norm(t.molecule.positions[1] - t.molecule.positions[0]) for t in still]
    assert np.ptp(bonds) < 1e-12
    directions = np.array([t.molecule.positions[1] - t.molecule.positions[0] for t in still])
    assert np.abs(directions.mean(axis=0)).max() < 0.2
    noisy = draw_geometries(
        load('name = "w"\n' + water + "cartesian_noise = 0.05\nrotate = false\n")
    )
    positions = np.array([t.molecule.positions for t in noisy]) * 0.529177
    assert positions.std(axis=0) == pytest.approx(0.05, rel=0.15)
    hot = draw_geometries(load('name = "w"\n' + water + "temperature = 600\nrotate = false\n"))
    shifts = np.array([t.molecule.positions for t in hot])
    shifts -= shifts.mean(axis=0)
    masses = np.array([15.999, 1.008, 1.008])[:, None] * 1822.888
    # Three classical oscillators hold ½ k_B T of potential energy each; their mass-weighted
    # displacement does not move the centre of mass.
    assert np.abs((masses * shifts).sum(axis=1)).max() < 1e-9
    assert shifts[:, 0].std() < shifts[:, 1].std()


def test_thermal_modes_are_the_normal_modes():
    """⟨q²⟩ = k_B T / ω²: the potential energy of each mode is ½ k_B T in PySCF's harmonic field."""
    from pyscf import gto, scf
    from pyscf.hessian import thermo

    from kineticnet_jax import Molecule
    from kineticnet_jax.reference import thermal_modes

    mol = gto.M(atom="O 0 0 0; H 0 0.757 0.587; H 0 -0.757 0.587", basis="sto-3g", verbose=0)
    field = scf.RHF(mol).run()
    hessian = field.Hessian().kernel()
    modes = thermal_modes(Molecule.from_pyscf(mol), 500.0)
    energies = 0.5 * np.einsum("kax,abxy,kby->k", modes, hessian, modes)
    assert energies == pytest.approx(0.5 * 500 * 3.166811563e-6, rel=1e-6)
    frequencies = thermo.harmonic_analysis(mol, hessian, imaginary_freq=False)["freq_au"]
    assert len(modes) == len(frequencies)
