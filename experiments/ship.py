"""Puts the functional of a finished run into the package, with a model card.

Run `python experiments/ship.py two-electron` after `two_electron/run.py --out two-electron`, or
`python experiments/ship.py RUNG` after `many_electron/run.py RUNG`, as four-electron. After a run
with `--functional NAME` the card alone is written again.
"""

import argparse
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import kineticnet_jax as kn
from kineticnet_jax.data.config import Family, load_config
from kineticnet_jax.evaluation_report import (
    CURVATURE_HEADS,
    DISTANCE,
    DISTANCE_HEADS,
    FIXED_HEADS,
    OPTIMIZED_HEADS,
    markdown_table,
)
from kineticnet_jax.files import complete_file
from kineticnet_jax.functionals.learned import LearnedFunctional, parameter_count
from kineticnet_jax.functionals.registry import PRETRAINED
from kineticnet_jax.functionals.storage import read_functional, save_functional
from kineticnet_jax.nn.config import NetworkConfig
from kineticnet_jax.train.loop import BEST

HERE = Path(__file__).parent

CARD = """# {name}

{about}

    kineticnet optimize {molecule}.xyz --functional {name} --reference

- {network}, {parameters:,} parameters, target "{target}".
- Trained on: {families}; {xc}/{basis}; ground states and random external potentials.
  {steps}.
- Made by: `{command}`, commit {commit},
  seed {seed}; the data follow from their configuration and seed, which are in `functional.json`.

## Domain of validity

Ground states of {electrons} electrons, without or with an external potential, of the molecules and
in the ranges of bond lengths (Å) and angles (degrees) below; training went a little beyond. For
other numbers of electrons, other elements and densities far from ground states the energy means
nothing.
The density is to be represented in the basis of training ({density_basis}); the energy is that of
this basis.

{domain}

The kinetic energy density means nothing by itself: only its integral T_s and the derivative of that
have weight in training.

## Errors on unseen geometries and potentials

At fixed densities, in mHa; the error of the potential is the energy an optimizer would wrongly
gain.

{fixed}

By how far an external potential takes T_s from that of the ground state, in mHa:

{distances}

After density optimization from the starting densities {guesses}, against Kohn–Sham, in mHa.

{optimized}

{rest}
"""


@dataclass(frozen=True)
class Origin:
    """Where a functional comes from.

    Attributes:
        about: first lines of its card.
        molecule: an example in `molecules`.
        command: that makes it.
        tested: configuration of the data it is tested on, beside this script.
        trained: its folder in that of the run.
        electrons: their number, in words.
    """

    about: str
    molecule: str
    command: str
    tested: str
    trained: str
    electrons: str


ORIGINS = {
    "two-electron": Origin(
        "A learned kinetic energy functional of two electrons: T_s[n] itself from the density\n"
        "alone. Nothing of the von Weizsäcker functional, the exact answer here, is inside.",
        "h2",
        "python experiments/two_electron/run.py",
        "configs/two-electron-test.toml",
        "train",
        "two",
    ),
    "four-electron": Origin(
        "A learned functional of four electrons: the Pauli kinetic energy T_s - T_vW from the\n"
        "density alone, one network for an atom, a polar bond and two closed shells next to\n"
        "each other. Energies are worst for two H2 closer than 2 Å, densities for LiH.",
        "lih",
        "python experiments/many_electron/run.py four-electron",
        "many_electron/test/four-electron.toml",
        "stage-2",
        "four",
    ),
    "ten-electron": Origin(
        "A learned functional of ten electrons: the Pauli kinetic energy T_s - T_vW from moments\n"
        "of the density around every atom, one network for neon and its four hydrides.\n"
        "Strongly polarised densities are worst at fixed density, NH3 after optimization. It\n"
        "needs a grid of level 2 at least: on one of level 1 energies are off by up to 30 mHa.",
        "water",
        "python experiments/many_electron/run.py ten-electron",
        "many_electron/test/ten-electron.toml",
        "stage-1",
        "ten",
    ),
}


def main() -> None:
    """Copies the functional and the figure, and writes the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=ORIGINS)
    parser.add_argument("--run", type=Path, help="folder of the finished run, by default the name")
    parser.add_argument(
        "--commit", help="that the run was made with; by default what is checked out"
    )
    options = parser.parse_args()
    run, origin = options.run or Path(options.name), ORIGINS[options.name]
    trained = run / origin.trained / BEST
    functional = read_functional(trained if trained.exists() else PRETRAINED[options.name])
    errors = json.loads((run / "errors.json").read_text(encoding="utf-8"))
    folder = Path(kn.__file__).parent / "pretrained" / options.name
    folder.parent.mkdir(exist_ok=True)
    save_functional(functional, folder)
    rest = curve_of_hydrogen(run) if options.name == "two-electron" else curvatures(errors)
    with complete_file(folder / "README.md") as temporary:
        text = card(functional, origin, errors, rest, options.commit or checked_out())
        temporary.write_text(text, encoding="utf-8")
    print(f"written to {folder}")


def card(
    functional: LearnedFunctional, origin: Origin, errors: dict, rest: str, commit: str
) -> str:
    """The model card as Markdown."""
    details = dict(functional.provenance.details)
    network = functional.network
    assert network is not None
    training = json.loads(details["training"])
    tested = load_config(HERE / origin.tested)
    own = errors["runs"][functional.name]["guess"]
    kind = "Moment network"
    if isinstance(network, NetworkConfig):
        kind = f'KineticNet with input "{network.inputs}"'
    steps = details["steps"]
    if "steps before" in details:
        steps += f" steps after {details['steps before']} with other settings (the latest first)"
    else:
        steps += " steps"
    return CARD.format(
        name=functional.name,
        about=origin.about,
        molecule=origin.molecule,
        command=origin.command,
        electrons=origin.electrons,
        parameters=parameter_count(functional)["network"],
        target=network.target,
        network=kind,
        families=details["families"],
        xc=details["xc"],
        basis=details["basis"],
        density_basis=details["density basis"] or details["basis"],
        domain="\n".join(domain(family) for family in tested.families),
        steps=steps,
        commit=commit,
        seed=training["seed"],
        fixed="\n".join(markdown_table(FIXED_HEADS, errors["fixed_densities"])),
        distances="\n".join(markdown_table(DISTANCE_HEADS, errors["distances"], DISTANCE)),
        guesses=", ".join(dict.fromkeys(own)),
        optimized="\n".join(markdown_table(OPTIMIZED_HEADS, errors["optimizations"])),
        rest=rest,
    )


def curve_of_hydrogen(run: Path) -> str:
    """What the dissociation curve of H2 is like; its figure is put beside the script of the run."""
    curve = json.loads((run / "curve.json").read_text(encoding="utf-8"))
    shutil.copy(run / "curve.png", HERE / "two_electron")
    return (
        "H2 from 0.4 to 3 Å: the second difference of the curve deviates from Kohn–Sham's by at "
        f"most\n{curve['second_difference_mha']:.3f} mHa, its minimum by "
        f"{curve['minimum_error_angstrom']:+.4f} Å."
    )


def curvatures(errors: dict) -> str:
    """The lowest curvatures at Kohn-Sham densities as Markdown."""
    return (
        "Lowest eigenvalues of the Hessian of the total energy at Kohn–Sham densities (1 where\n"
        "only T_vW counts); a density with a negative one is no minimum:\n\n"
        + "\n".join(markdown_table(CURVATURE_HEADS, errors["curvatures"]))
    )


def checked_out() -> str:
    """The commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def domain(family: Family) -> str:
    """The ranges of a family as an item of a list."""
    ranges = [f"{name} {low:g} to {high:g}" for name, (low, high) in family.variables.items()]
    return f"- {family.name}" + (f": {', '.join(ranges)}" if ranges else "")


if __name__ == "__main__":
    main()
