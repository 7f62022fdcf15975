"""Measure sigma: warm block power iteration over the layers of one device. Pure tensors.

A block of b vectors per layer is kept from step to step. It follows a slowly moving weight W, so
one iteration (two products with W) per training step finds sigma to about 1e-5 while the weight is
free, and to better than 1e-3 while a threshold holds it, where singular values crowd together (a
single vector errs by 5e-2 there). Where W moves abruptly the residual shows it, and a step gets up
to four iterations. sigma never exceeds the spectral norm, up to rounding: it is ||W'u|| of a unit
vector u. It is an estimate from below; `certificate` gives the bound from above.
"""

from snc_client.estimator.block_power import LAG, BlockPower, Estimates
from snc_client.estimator.graph import warm_blocks
from snc_client.estimator.products import Operator

__all__ = ["LAG", "BlockPower", "Estimates", "Operator", "warm_blocks"]
