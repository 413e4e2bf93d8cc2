"""Puts the functional of a finished run into the package, and its curve of H2 beside this script.

Run `python experiments/two_electron/ship.py two-electron` after `run.py --out two-electron`. After
`run.py --functional NAME --out two-electron` the card alone is written again.
"""

import argparse
import json
import shutil
import subprocess
from pathlib import Path

import kineticnet_jax as kn
from kineticnet_jax.data.config import Family, load_config
from kineticnet_jax.evaluation_report import (
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
from kineticnet_jax.train.loop import BEST

CONFIGS = Path(__file__).parents[1] / "configs"

CARD = """# {name}

A learned kinetic energy functional of two electrons: T_s[n] itself from the density alone. Nothing
of the von Weizsäcker functional, the exact answer here, is inside.

    kineticnet optimize h2.xyz --functional {name} --reference

- Network: {parameters:,} parameters, target "{target}", input "{inputs}".
- Trained on: {families}; {xc}/{basis}; ground states and random external potentials, {steps}
  steps.
- Made by: `python experiments/two_electron/run.py`, commit {commit},
  seed {seed}; the data follow from their configuration and seed, which are in `functional.json`.

## Domain of validity

Ground states of two electrons, without or with an external potential, of the molecules and in the
ranges of bond lengths r (Å) and angles a (degrees) below; training went a little beyond. For other
numbers of electrons, other elements and densities far from ground states the energy means nothing.
The density is to be represented in the basis of the reference ({basis}); the energy is that of this
basis.

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

H2 from 0.4 to 3 Å: the second difference of the curve deviates from Kohn–Sham's by at most
{second:.3f} mHa, its minimum by {minimum:+.4f} Å.
"""


def main() -> None:
    """Copies the functional and the figure, and writes the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run.py")
    parser.add_argument(
        "--commit", help="that the run was made with; by default what is checked out"
    )
    options = parser.parse_args()
    trained = options.run / "train" / BEST
    functional = read_functional(trained if trained.exists() else PRETRAINED["two-electron"])
    errors = json.loads((options.run / "errors.json").read_text(encoding="utf-8"))
    curve = json.loads((options.run / "curve.json").read_text(encoding="utf-8"))
    folder = Path(kn.__file__).parent / "pretrained" / functional.name
    folder.parent.mkdir(exist_ok=True)
    save_functional(functional, folder)
    with complete_file(folder / "README.md") as temporary:
        temporary.write_text(
            card(functional, errors, curve, options.commit or checked_out()), encoding="utf-8"
        )
    shutil.copy(options.run / "curve.png", Path(__file__).parent)
    print(f"written to {folder}")


def card(functional: LearnedFunctional, errors: dict, curve: dict, commit: str) -> str:
    """The model card as Markdown."""
    details = dict(functional.provenance.details)
    name, network = functional.name, functional.network
    assert network is not None
    tested = load_config(CONFIGS / "two-electron-test.toml")
    return CARD.format(
        name=name,
        parameters=parameter_count(functional)["network"],
        target=network.target,
        inputs=network.inputs,
        families=details["families"],
        xc=details["xc"],
        basis=details["basis"],
        domain="\n".join(domain(family) for family in tested.families),
        steps=details["steps"],
        commit=commit,
        seed=json.loads(details["training"])["seed"],
        fixed="\n".join(markdown_table(FIXED_HEADS, errors["fixed_densities"])),
        distances="\n".join(markdown_table(DISTANCE_HEADS, errors["distances"], DISTANCE)),
        guesses=", ".join(dict.fromkeys(errors["runs"][name]["guess"])),
        optimized="\n".join(markdown_table(OPTIMIZED_HEADS, errors["optimizations"])),
        second=curve["second_difference_mha"],
        minimum=curve["minimum_error_angstrom"],
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
