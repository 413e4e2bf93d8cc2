"""How long a new process takes: the import, and `kineticnet optimize` on H2, beside PySCF's RKS.

Run `python experiments/benchmarks/startup.py`; it writes startup.md beside itself. Every time is
that of a whole process, the median of some that alternate; compiled programs are kept from a first
run, which is shown too.
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

H2 = Path(__file__).parents[1] / "molecules" / "h2.xyz"
OPTIMIZE = [sys.executable, "-m", "kineticnet_jax", "optimize", str(H2), "--functional"]
RKS = f"""
from pyscf import dft, gto
atoms = open({str(H2)!r}).read().split("\\n", 2)[2]
dft.RKS(gto.M(atom=atoms, basis="cc-pvdz"), xc="b88,lyp").run(verbose=0)
"""
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import of the package": [sys.executable, "-c", "import kineticnet_jax"],
    "import of JAX alone": [sys.executable, "-c", "import jax"],
    "RKS of H2 with PySCF": [sys.executable, "-c", RKS],
    "kineticnet optimize, vw": [*OPTIMIZE, "vw"],
    "kineticnet optimize, two-electron": [*OPTIMIZE, "two-electron"],
}
REFERENCE = "RKS of H2 with PySCF"
REPETITIONS = 7
LIMITS = {"import of the package": 2.0, "kineticnet optimize, two-electron": 8.0}


def seconds(command: list[str], cache: str) -> float:
    """Time of a process from its start to its end."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Times all processes and writes the table."""
    with tempfile.TemporaryDirectory() as cache:
        first = {name: seconds(command, cache) for name, command in COMMANDS.items()}
        times: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for _ in range(REPETITIONS):
            for name, command in COMMANDS.items():
                times[name].append(seconds(command, cache))
    medians = {name: statistics.median(values) for name, values in times.items()}
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "pyscf"))
    lines = [
        "# Start of a process",
        "",
        "Written by `python experiments/benchmarks/startup.py`: whole processes, the first with "
        f"nothing compiled and the median of {REPETITIONS} that alternate. H2, BLYP/cc-pVDZ. "
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"{packages}.",
        "",
        "| process | first (s) | then (s) | limit (s) | relative to RKS |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, value in medians.items():
        limit = f"{LIMITS[name]:g}" if name in LIMITS else ""
        ratio = value / medians[REFERENCE]
        lines.append(f"| {name} | {first[name]:.2f} | {value:.2f} | {limit} | {ratio:.2f} |")
    text = "\n".join(lines) + "\n"
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
