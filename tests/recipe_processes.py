"""A recipe in two processes of torchrun, without its loop's rest; prints the weights, or why it is refused.

python -m torch.distributed.run --standalone --nproc-per-node 2 recipe_processes.py RECIPE HOW, with lightning or
accelerate, and yes, no (no reduce=) or wrapped (in DistributedDataParallel)
"""

import json
import os
import sys
import warnings

import torch
from torch.utils.data import DataLoader, DistributedSampler

import metaprox as mp
from metaprox.models import mean_squared_error, mlp
from metaprox.tasks import Sinusoid


def made(reduced):
    model, reduce = mlp([1, 16, 1], seed=0), mp.distributed.AllReduce() if reduced else None
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5)
    return model, problem, mp.FOBMAML(mp.GradientDescent(lr=0.05), steps=5, reduce=reduce)


def batches(**order):
    return DataLoader(range(12), batch_size=2, collate_fn=Sinusoid().batch, **order)


def by_lightning(how):
    import lightning

    class MetaLearner(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.model, self.problem, self.meta = made(how == "yes")

        def training_step(self, tasks, index):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.meta.backward(self.problem, tasks)
            optimizer.step()

        def configure_optimizers(self):
            return torch.optim.SGD(self.model.parameters(), lr=0.01)

    module = MetaLearner()
    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    quiet = dict.fromkeys(names, False)
    several = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}  # Lightning's own one shuffles
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", **several, **quiet)
    rank = int(os.environ["RANK"])
    trainer.fit(module, batches(sampler=DistributedSampler(range(12), num_replicas=2, rank=rank, shuffle=False)))
    return module.model, trainer.global_rank


def by_accelerate(how):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, problem, meta = made(how == "yes")
    if how == "wrapped":
        model = accelerator.prepare(model)
        problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5)
    optimizer, loader = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=0.01), batches())
    for tasks in loader:
        optimizer.zero_grad()
        meta.backward(problem, tasks)
        optimizer.step()
    return model, accelerator.process_index


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        model, rank = (by_lightning if sys.argv[1] == "lightning" else by_accelerate)(sys.argv[2])
        found = {name: value.flatten().tolist() for name, value in model.state_dict().items()}
    except mp.InputError as error:
        found, rank = str(error), None
    print("\n" + json.dumps({"rank": rank, "found": found}), flush=True)
