"""The physics room: grids, equations and their laws, reference solvers."""
