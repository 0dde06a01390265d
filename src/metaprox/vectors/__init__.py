"""Parameters as vectors of P numbers: their layout, norms, and the terms of an objective that need no data."""
