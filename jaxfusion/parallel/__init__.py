"""Many devices behind one interface: what a step computes does not depend on where its rows and parameters lie.

parallel = make_parallel(config.parallel)
step = parallel.compile(partial(train_step, model, optimizer), donate=True)
state = parallel.put_state(state)
state, metrics = step(state, parallel.put_batch(batch))
loss = parallel.unreplicate(metrics)["loss"]
"""

from jaxfusion.parallel.cores import use_cpu_cores
from jaxfusion.parallel.make import make_parallel
from jaxfusion.parallel.mesh import MeshParallel, make_mesh
from jaxfusion.parallel.pmap import PmapParallel
from jaxfusion.parallel.strategy import Parallel, Step

__all__ = ["MeshParallel", "Parallel", "PmapParallel", "Step", "make_mesh", "make_parallel", "use_cpu_cores"]
