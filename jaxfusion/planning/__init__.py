"""Plans for hardware that is not there, from the step as XLA compiles it: memory, kernels, collectives, bounds."""

from jaxfusion.planning.described import compile_for, described_mesh
from jaxfusion.planning.program import Program, read_program

__all__ = ["Program", "compile_for", "described_mesh", "read_program"]
