"""Regression on tables of patients: each patient is a task, with as many visits as there are.

Every patient answers to a drug in a way of their own: how strong, from which dose on, how it fades with age. The page
writes a CSV file for each of 120 patients, reads the folder, and takes a patient's first six visits as the support and
the later ones as the query (``Grouped``). An MLP is meta-learned on 80 patients. On patients that were held out it
prints the error (root mean square, in units of the response, whose noise is 0.3) of

    the mean of the patient's first visits
    a ridge regression on them, with the best of four penalties, chosen on the held-out patients themselves
    one MLP for everybody, trained on all visits of the 80 patients, not adapted, and adapted in the same way
    the MLP before meta-training and after it, adapted to the first visits

The same in one line: metaprox train tables --data FOLDER --target response --order visit --support 6

About half a minute: python examples/patients.py
"""

import argparse
import copy
import csv
import math
import random
import tempfile
from pathlib import Path

import torch
from torch import nn

import metaprox as mp
from metaprox.data import Grouped, split_classes
from metaprox.models import mean_squared_error, mlp
from metaprox.readers import read_tables


def write(folder: Path, patients: int) -> None:
    """A table for each patient: visit, age, weight, dose and response."""
    for patient in range(patients):
        draws = random.Random(f"patient {patient}")
        strength, from_dose, fading = draws.uniform(0.5, 3), draws.uniform(-1, 1), draws.uniform(-1, 1)
        with (folder / f"patient {patient}.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["visit", "age", "weight", "dose", "response"])
            for visit in range(draws.randint(12, 40)):
                age, weight, dose = (draws.gauss(0, 1) for _ in range(3))
                effect = strength * math.tanh(2 * (dose - from_dose)) + fading * age + 0.2 * weight
                table.writerow([visit, *(round(x, 3) for x in (age, weight, dose, effect + draws.gauss(0, 0.3)))])


def error(tasks: list[mp.Task], predict) -> str:
    """Root mean square over visits, mean over patients with its 95 % interval."""
    each = torch.stack([(predict(task)(task.query[0]) - task.query[1]).square().mean().sqrt() for task in tasks])
    return str(mp.Statistic.of(each.detach()))


def ridge(penalty: float):
    """Linear regression on a task's support."""

    def fitted(task):
        x, y = (torch.cat([part, torch.ones(len(part), 1)], 1) for part in (task.support[0], task.support[1]))
        y = y[:, :1]
        weights = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1]), x.T @ y)
        return lambda inputs: torch.cat([inputs, torch.ones(len(inputs), 1)], 1) @ weights

    return fitted


def main(place: Path, patients: int, meta_steps: int) -> None:
    write(place, patients)
    visits = read_tables(place, "response", order="visit")
    groups = split_classes(sorted(set(visits.groups)), {"train": 2 / 3, "test": 1 / 3})
    train, test = (
        Grouped(visits, support=6, how="time", groups=groups[split], inputs=lambda rows: rows.float())
        for split in ("train", "test")
    )
    held_out = test.batch(range(test.count))  # each patient once
    print(f"columns {visits.columns}, {train.count} patients to learn from, {test.count} held out")
    print("mean of the first visits", error(held_out, lambda task: lambda inputs: task.support[1].mean()))
    best = min(
        (error(held_out, ridge(penalty)) for penalty in (0.01, 0.1, 1, 10)), key=lambda text: float(text.split()[0])
    )
    print("ridge on the first visits", best)

    model = mlp([len(visits.columns), 64, 64, 1])
    pooled, everybody = copy.deepcopy(model), [task for i in range(train.count) for task in train[i]]
    adam = torch.optim.Adam(pooled.parameters(), lr=0.003)
    for step in range(2 * meta_steps):
        batch = everybody[step % len(everybody)]
        adam.zero_grad()
        mean_squared_error(pooled, batch).backward()
        adam.step()

    def adapted(model: nn.Module):
        learner = mp.Learner(model, mean_squared_error, lam=0.2, solver=mp.AdaptiveGradientDescent(lr=0.1), steps=10)
        return lambda task: learner.adapt(task.support).module()

    print("one MLP for everybody", error(held_out, lambda task: pooled))
    print("one MLP for everybody, adapted", error(held_out, adapted(pooled)))
    print("before meta-training, adapted", error(held_out, adapted(model)))

    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.2)
    meta = mp.FOBMAML(mp.AdaptiveGradientDescent(lr=0.1), steps=10, perturb="center")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for step in range(meta_steps):
        optimizer.zero_grad()
        meta.backward(problem, train.batch(range(8 * step, 8 * step + 8)))
        optimizer.step()
    print("after meta-training, adapted", error(held_out, adapted(model)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer patients and steps")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder), *((60, 40) if quick else (120, 200)))
