"""Speed and memory of orbital-free calculations beside PySCF's RKS, and how both grow.

    python experiments/benchmarks/suite.py
    python experiments/benchmarks/suite.py --systems water --largest 5 --functionals tf+vw --cores 2

Every case, a molecule with a functional, is measured in a process of its own, with RKS alternating
in it: same molecule, xc functional, basis, grid level and processors. Results are kept as lines of
JSON in the folder of --out; a suite that was stopped goes on with the same command. A case that
takes too much memory or time, or crashes, becomes a result that says so. At the end, or with
--report alone, suite.md and figures are written there of all that was measured on this machine with
as many processors.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

# Before JAX is: it logs every program it keeps.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from machine import processor
from suite_cases import FAMILIES, Case, default_functionals, make_cases
from suite_results import DONE

import kineticnet_jax as kn
from kineticnet_jax.errors import first_line, unknown_name
from kineticnet_jax.files import complete_file, lock

HERE = Path(__file__).parent
RESULTS = "results.jsonl"
POLL_SECONDS = 0.1
PACKAGES = ("jax", "numpy", "pyscf")


def environment(cores: int, grid_level: int) -> dict[str, Any]:
    """What all results of a report have in common, and the commit."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {
        "cores": cores,
        "grid_level": grid_level,
        "processor": processor(),
        "memory": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "versions": {"python": platform.python_version(), "kineticnet_jax": kn.__version__}
        | versions,
        "commit": _commit(),
    }


def _commit() -> str:
    command = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def run_case(case: Case, memory: float, limit: float) -> dict[str, Any]:
    """Measures a case in a process of its own.

    Args:
        case: what to measure.
        memory: GB of resident memory at which the process is ended.
        limit: seconds after which it is.

    Returns:
        What was measured until its end, with "status", "done" or why not.
    """
    threads = {"OMP_NUM_THREADS": str(case.cores), "JAX_ENABLE_X64": "1"}
    variables = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | threads
    command = [sys.executable, str(HERE / "suite_measure.py"), json.dumps(asdict(case))]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors, env=variables)
        try:
            stopped = _watch(process, memory, limit)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        out.seek(0)
        errors.seek(0)
        result: dict[str, Any] = {}
        for line in out:
            result |= _parsed(line) or {}
        said = errors.read().strip().splitlines()
    phase = result.pop("phase", "start")
    if stopped is not None:
        result["status"] = f"{stopped} in {phase}"
    elif process.returncode == 0:
        result["status"] = DONE
    elif process.returncode < 0:
        result["status"] = f"ended by signal {-process.returncode} in {phase}"
    else:
        # JAX ends long tracebacks with a remark about itself.
        reasons = [line for line in said if "Error" in line.partition(":")[0]] or said or ["?"]
        result["status"] = f"failed in {phase}: {reasons[-1][:200]}"
    return result


def _watch(process: subprocess.Popen, memory: float, limit: float) -> str | None:
    """Waits for the end of a process; returns why it has to be ended before, if so."""
    end = time.monotonic() + limit
    while process.poll() is None:
        if _resident(process.pid) > memory:
            return f"more than {memory:g} GB"
        if time.monotonic() > end:
            return f"more than {limit:g} s"
        time.sleep(POLL_SECONDS)
    return None


def _resident(pid: int) -> float:
    """Memory of a running process in GB."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def read_results(path: Path) -> list[dict[str, Any]]:
    """All results of a file; the last line may be cut off if a suite was killed."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [row for line in lines if (row := _parsed(line)) is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None


def same_machine(rows: Sequence[dict[str, Any]], here: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Results that can be compared: all but the commit is the same."""
    for row in rows:
        if all(row.get(name) == value for name, value in here.items() if name != "commit"):
            yield row


def measure_all(options: argparse.Namespace, here: dict[str, Any]) -> None:
    """Measures all cases that have no result yet."""
    settings = Case(
        "cost",
        "water",
        1,
        "tf+vw",
        grid_level=options.grid_level,
        cores=options.cores,
        seconds=options.seconds,
    )
    chosen = (options.systems, options.functionals, options.largest, options.precision)
    cases = list(make_cases(*chosen, settings))
    path = options.out / RESULTS
    with open(path, "a", encoding="utf-8") as file:
        lock(file, path)
        # A line that was cut off must not spoil the next one.
        if file.tell() and not path.read_bytes().endswith(b"\n"):
            file.write("\n")
        known = list(same_machine(read_results(path), here))
        for number, case in enumerate(cases, start=1):
            rows = [row for row in known if case.is_case_of(row)]
            name = f"{case.system} {case.size}, {case.functional} ({case.kind})"
            if rows and not options.again and not (options.retry and rows[-1]["status"] != DONE):
                continue
            start = time.monotonic()
            result = run_case(case, options.memory, options.time_limit)
            file.write(json.dumps(asdict(case) | here | result) + "\n")
            file.flush()
            seconds = time.monotonic() - start
            print(f"{number}/{len(cases)} {name}: {result['status']}, {seconds:.0f} s", flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    available = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--systems", nargs="+", default=list(FAMILIES), metavar="NAME", help=", ".join(FAMILIES))
    add("--functionals", nargs="+", default=list(default_functionals()), metavar="NAME")
    add("--largest", type=int, metavar="N", help="no molecules of more units")
    add("--cores", type=int, default=available, help="processors of every process")
    add("--grid-level", type=int, default=3)
    add("--seconds", type=float, default=20.0, help="repeat each measurement for so long")
    add("--memory", type=float, default=6.0, help="GB at which a process is ended")
    add("--time-limit", type=float, default=1800.0, help="seconds after which one is")
    add("--precision", action=argparse.BooleanOptionalAction, default=True)
    add("--again", action="store_true", help="measure what has a result, too")
    add("--retry", action="store_true", help="measure what failed again")
    add("--report", action="store_true", help="write the report only")
    add("--out", type=Path, default=HERE / "suite")
    options = parser.parse_args(arguments)
    for name in options.systems:
        if name not in FAMILIES:
            raise unknown_name("system", name, FAMILIES)
    if not 1 <= options.cores <= available:
        raise kn.InputError(f"--cores must be from 1 to {available}, but is {options.cores}")
    for name in ("seconds", "memory", "time_limit"):
        if not getattr(options, name) > 0:
            raise kn.InputError(f"--{name.replace('_', '-')} must be positive")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the suite; returns the exit code."""
    try:
        options = parse(arguments)
        options.out.mkdir(parents=True, exist_ok=True)
        here = environment(options.cores, options.grid_level)
        if not options.report:
            # As Ctrl-C does, so that the process that measures ends too.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
            measure_all(options, here)
    except (kn.InputError, OSError) as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; results are in {options.out / RESULTS}, the same command goes on")
        return 130
    # Matplotlib would make this process larger while others are measured.
    from suite_report import write_report

    rows = list(same_machine(read_results(options.out / RESULTS), here))
    if not rows:
        print(f"error: no results of this machine in {options.out / RESULTS}", file=sys.stderr)
        return 2
    with complete_file(options.out / "suite.md") as path:
        path.write_text(write_report(rows, here, options.out), encoding="utf-8")
    print(f"report in {options.out / 'suite.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
