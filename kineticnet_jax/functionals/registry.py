"""Functionals by name or from a folder."""

import re
from pathlib import Path

from kineticnet_jax.errors import InputError, unknown_name
from kineticnet_jax.functionals.base import Functional, SemiLocal
from kineticnet_jax.functionals.kinetic import apbek, lkt_pauli, thakkar, thomas_fermi

FUNCTIONALS = {
    "tf": SemiLocal("tf", 0.0, thomas_fermi),
    "vw": SemiLocal("vw", 1.0, None),
    "tf+vw": SemiLocal("tf+vw", 1.0, thomas_fermi),
    "apbek": SemiLocal("apbek", 0.0, apbek),
    "lkt": SemiLocal("lkt", 1.0, lkt_pauli),
    "thakkar": SemiLocal("thakkar", 0.0, thakkar),
}
"""Classical functionals: Thomas–Fermi, von Weizsäcker, their sum, APBEK, LKT and Thakkar."""

PRETRAINED = {
    path.parent.name: path.parent
    for path in sorted((Path(__file__).parents[1] / "pretrained").glob("*/functional.json"))
}
"""Folders of the learned functionals that come with the package, each with a model card."""

_TF_LAMBDA_VW = re.compile(r"tf\+(\d+(?:\.\d+)?|1/\d+)vw")


def load_functional(name: str | Path) -> Functional:
    """A kinetic energy functional by name, or a learned one from its folder.

    Args:
        name: "tf", "vw", "tf+vw", "apbek", "lkt", "thakkar", or "tf+0.2vw" and "tf+1/9vw" for
            any coefficient of the von Weizsäcker term; the name of a pretrained functional,
            one of `PRETRAINED`; or the path of a folder.

    Returns:
        The functional.

    Raises:
        InputError: for an unknown name, with the closest known one suggested, or a folder that
            holds no functional this version can read.
    """
    key = str(name).lower()
    # A classical functional with a fraction in its name has a slash too.
    classical = key in FUNCTIONALS or _TF_LAMBDA_VW.fullmatch(key)
    place = PRETRAINED.get(key, Path(name))
    if not classical and (key in PRETRAINED or "/" in str(name) or place.is_dir()):
        # The network loads e3nn, which takes a second that classical functionals do not need.
        from kineticnet_jax.functionals.storage import read_functional

        return read_functional(place)
    if key in FUNCTIONALS:
        return FUNCTIONALS[key]
    if match := _TF_LAMBDA_VW.fullmatch(key):
        numerator, _, denominator = match[1].partition("/")
        if denominator == "0":
            raise InputError(f"'{name}' divides by zero")
        return SemiLocal(key, float(numerator) / float(denominator or 1), thomas_fermi)
    raise unknown_name("functional", str(name), (*FUNCTIONALS, *PRETRAINED))


def training_conditions(functional: Functional) -> dict[str, str]:
    """What a learned functional was trained with, by name: "xc", "basis", "density basis", ….

    Empty for classical functionals, and without what is not known.
    """
    provenance = getattr(functional, "provenance", None)
    details = {} if provenance is None else dict(provenance.details)
    return {name: value for name, value in details.items() if value}
