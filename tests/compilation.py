"""Flags of the compiler for tests, whose programs run once: most of the time goes to compiling."""

from importlib.metadata import version

# Since jaxlib 0.11.2 the flag is unknown, which ends the process.
NO_EMITTERS = (
    "--xla_cpu_use_fusion_emitters=false"
    if version("jaxlib").startswith(("0.9.", "0.10.", "0.11.0"))
    else ""
)
"""Compiles in a third of the time."""

UNOPTIMIZED = (
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 " + NO_EMITTERS
)
"""Compiles in a quarter of the time; in one piece, as two workers are at it anyway."""
