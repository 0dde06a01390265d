"""Meta-gradients over several device meshes, one after another: ``torchrun --nproc-per-node 2 tests/meshes.py``."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import metaprox as mp


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def main():
    found = []
    for _ in range(3):
        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("tasks", "shards"))
        torch.manual_seed(0)
        model = nn.Linear(3, 1).double()
        fully_shard(model, mesh=mesh["shards"])
        x = torch.randn(5, 3, dtype=torch.float64)
        problem = mp.ProximalProblem.from_module(model, loss, lam=0.5)
        reduce = mp.distributed.AllReduce(group=mesh.get_group("tasks"))
        mp.FOBMAML(mp.GradientDescent(0.1), 2, reduce=reduce).backward(problem, [mp.Task((x, x[:, :1]), (x, x[:, :1]))])
        found.append(float(model.weight.grad.full_tensor().norm()))
    assert len(set(found)) == 1, found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with mp.distributed.processes():
        main()
