"""Small data sets for tests, made in the process of the test, without dask."""

from kineticnet_jax.data import run
from kineticnet_jax.data.geometries import draw_geometries


def write_dataset(config, path):
    """Generates a data set by the parts of `generate`."""
    with run._parts_folder(path, config) as parts:
        for task in draw_geometries(config):
            index, content, _ = run.compute_part(config, task)
            (parts / f"{index:06d}.h5").write_bytes(content)
    # Nothing is missing: what is left is to merge.
    run.generate(config, path, workers=1)
    return path
