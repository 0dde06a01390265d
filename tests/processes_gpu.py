"""A model in shards on the one CUDA device of this process, by nccl, beside the whole: prints a line of JSON."""

import json

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

import metaprox as mp
from processes_sharded import flat, loss, net, tasks

DEVICE = torch.device("cuda", 0)


def gradient(model):
    """What ``backward`` leaves in ``.grad``."""
    torch.manual_seed(0)
    problem = mp.ProximalProblem.from_module(model, loss, 0.5)
    meta = mp.FOBMAML(mp.GradientDescent(0.1), 3, perturb="center", backend="loop")
    meta.backward(problem, mp.Task(*(tuple(leaf.to(DEVICE) for leaf in part) for part in tasks(range(3)))))
    return flat(p.grad for p in model.parameters())


def main():
    torch.cuda.set_device(DEVICE)
    dist.init_process_group("nccl", rank=0, world_size=1, device_id=DEVICE)
    whole, sharded = net().to(DEVICE), net().to(DEVICE)
    fully_shard(sharded[0])
    fully_shard(sharded)
    one, other = gradient(whole), gradient(sharded)
    print(json.dumps({"apart": float((one - other).norm() / one.norm()), "size": float(one.norm())}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
