"""The strategy that a config names."""

import jax

from jaxfusion.config.run import ParallelConfig
from jaxfusion.errors import UserError
from jaxfusion.parallel.mesh import MeshParallel, make_mesh
from jaxfusion.parallel.pmap import PmapParallel
from jaxfusion.parallel.strategy import Parallel


def make_parallel(config: ParallelConfig) -> Parallel:
    """Over all devices; one device is no special case. Raises UserError for axes that do not come to their number."""
    if config.strategy == "mesh":
        return MeshParallel(make_mesh(jax.devices(), config), config.rules)
    for name in ("fsdp", "tensor"):
        if getattr(config, name) > 1:
            raise UserError(
                f"config.parallel.{name}: under pmap each device holds the whole state; use strategy 'mesh', or 1"
            )
    return PmapParallel(make_mesh(jax.devices(), config))
