"""All rows, part by part."""

from bad_inputs import calls, data, estimators, families, optimizers, problems, solvers, training

MODULES = (solvers, estimators, problems, calls, data, families, optimizers, training)
PARTS = {module.__name__.split(".")[-1]: module.rows() for module in MODULES}
