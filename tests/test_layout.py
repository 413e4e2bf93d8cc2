"""Who may import whom: data flow one way, and PySCF stays in its corner."""

import ast
from pathlib import Path

import kineticnet_jax

PACKAGE = Path(kineticnet_jax.__file__).parent

# A module may import those in earlier rows, and other parts of its own row.
ORDER = [
    {"types", "units", "errors", "safe", "files", "config", "colors", "cluster"},
    {"harmonics", "boys"},
    {"molecule", "quadrature"},
    {"basis", "grid_tables"},
    {"grid", "boxes"},
    {"tree", "matrix"},
    {"electrostatics"},
    {"reference"},
    {"system"},
    {"density"},
    {"functionals", "nn"},
    {"energy"},
    {"minimize", "normal_equations"},
    {"optimize"},
    {"response", "interchange", "survey", "batch"},
    {"data"},
    {"fit", "forces"},
    {"curvature"},
    {"evaluate"},
    {"train", "evaluation_report"},
    {"report", "ase"},
    {"cli_data", "cli_functionals", "cli_optimize", "cli_train"},
    {"cli"},
    {"__init__", "__main__"},
]
RANK = {name: row for row, names in enumerate(ORDER) for name in names}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_part_has_a_place():
    assert {part(path) for path in PACKAGE.rglob("*.py")} == set(RANK)


def test_imports_point_one_way():
    for path in PACKAGE.rglob("*.py"):
        for name in imports(path):
            package, _, rest = name.partition(".")
            imported = rest.split(".")[0]
            if package == "kineticnet_jax" and imported in RANK:
                assert RANK[imported] <= RANK[part(path)], f"{path.name} imports {name}"


def test_pyscf_is_imported_in_reference_only():
    for path in PACKAGE.rglob("*.py"):
        if part(path) != "reference":
            assert not any(name.split(".")[0] == "pyscf" for name in imports(path)), path
