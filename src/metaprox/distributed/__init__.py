"""One meta-step in several processes: tasks in shards, sums over all of them, on torch's own process groups."""

from metaprox.distributed.all_reduce import AllReduce
from metaprox.distributed.evaluation import evaluate
from metaprox.distributed.shards import shard
from metaprox.distributed.start import processes

__all__ = ["AllReduce", "evaluate", "processes", "shard"]
