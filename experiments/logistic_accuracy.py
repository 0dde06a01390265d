"""How accurate is a meta-gradient for how many gradients? Logistic regression against the exact answer.

Eight tasks of 40 support and 40 query points in 20 dimensions, lam = 0.1, float64. The exact meta-gradient comes
from Newton's method and a dense solve. Every row is one setting of FO-B-MAML, from the same start; its cost is in
gradient evaluations per task. Writes results.json and table.md. Takes some seconds.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import metaprox as mp

torch.set_num_threads(1)
LAM = 0.1
GD, NESTEROV, ANDERSON = mp.GradientDescent(1.5), mp.Nesterov(1.0), mp.Anderson(1.0)
CENTER: dict[str, Any] = {"perturb": "center", "eps": 0.05}
LOSS: dict[str, Any] = {"perturb": "loss", "nu": 0.05}
ONE_BRANCH: dict[str, Any] = {"scheme": "forward", "residual_correction": True, "perturb": "center", "eps": 0.005}

ROWS: dict[str, mp.FOBMAML] = {
    "FO-MAML (no branch step), gradient descent": mp.FOBMAML(GD, 10, start="predictor", branch_steps=0),
    "symmetric, loss, gradient descent": mp.FOBMAML(GD, 10, **LOSS),
    "symmetric, loss, Nesterov": mp.FOBMAML(NESTEROV, 10, **LOSS),
    "symmetric, loss, Anderson": mp.FOBMAML(ANDERSON, 10, **LOSS),
    "symmetric, loss, adaptive gradient descent": mp.FOBMAML(mp.AdaptiveGradientDescent(1.5), 10, **LOSS),
    "symmetric, center, Anderson": mp.FOBMAML(ANDERSON, 10, **CENTER),
    "central4, center, Anderson": mp.FOBMAML(ANDERSON, 10, scheme="central4", **CENTER),
    "forward corrected, center, Anderson": mp.FOBMAML(ANDERSON, 10, **ONE_BRANCH),
    "forward corrected, center, 5 Anderson steps": mp.FOBMAML(ANDERSON, 10, branch_steps=5, **ONE_BRANCH),
    "forward corrected, center, 5 Anderson steps, K = 30": mp.FOBMAML(ANDERSON, 30, branch_steps=5, **ONE_BRANCH),
}


def logistic(params: mp.problem.Params, data: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    inputs, labels = data
    return torch.nn.functional.binary_cross_entropy_with_logits(inputs @ params["w"], labels)


def tasks(seed: int, count: int = 8, examples: int = 40, dim: int = 20) -> mp.Task:
    """Inputs of decaying scale, labels from a random linear model with noise."""
    rng = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -1, dim, dtype=torch.float64)
    truth = torch.randn(count, dim, 1, dtype=torch.float64, generator=rng)

    def data() -> tuple[torch.Tensor, torch.Tensor]:
        inputs = 2 * torch.randn(count, examples, dim, dtype=torch.float64, generator=rng) * scales
        chance = torch.sigmoid((inputs @ truth).squeeze(-1))
        return inputs, (torch.rand(chance.shape, dtype=torch.float64, generator=rng) < chance).double()

    return mp.Task(data(), data())


def percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2g} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and table.md")
    parser.add_argument("--seed", type=int, default=0, help="seed of the tasks (default: %(default)s)")
    arguments = parser.parse_args()
    problem = mp.ProximalProblem(logistic, logistic, LAM)
    batch = tasks(arguments.seed)
    params = {"w": torch.zeros(20, dtype=torch.float64)}
    exact = mp.exact_meta_gradient(problem, params, batch).grad["w"]
    results = []
    for name, meta in ROWS.items():
        out = meta(problem, params, batch)
        error = float((out.grad["w"] - exact).norm() / exact.norm())
        counts = out.info.counts
        support, query = counts.support_gradients / len(out.query_loss), counts.query_gradients / len(out.query_loss)
        results.append({"setting": name, "error": error, "support": support, "query": query})
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = {"seed": arguments.seed, "torch": torch.__version__, "rows": results}
    (arguments.out / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    table = ["| setting | support gradients | query gradients | relative error |", "|---|---|---|---|"]
    table += [f"| {r['setting']} | {r['support']:g} | {r['query']:g} | {percent(r['error'])} |" for r in results]
    (arguments.out / "table.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    main()
