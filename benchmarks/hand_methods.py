"""What a few lines of torch do without a library: plain gradients, MAML with torch.func, and equation (2) naively.

The same contract as in peer_methods.py: each adds to the ``.grad`` of the model's parameters.
"""

import copy
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

import metaprox as mp
from peer_methods import Batch, Inner, Loss, count, each, proximal_term

Params = dict[str, Tensor]


def plain_gradients(
    model: nn.Module, loss: Loss, tasks: mp.Task, inner: Inner, *, further: int = 0, query: bool = True
) -> None:
    """K + ``further`` gradients on the support of each task, one by one as in plain training, and one on its query."""
    for support, test in each(tasks):
        for batch in [support] * (inner.steps + further) + [test] * query:
            model.zero_grad()
            loss(model, batch).backward()


def at_parameters(model: nn.Module, loss: Loss) -> Callable[[Params, Batch], Tensor]:
    return lambda params, batch: loss(lambda inputs: functional_call(model, params, (inputs,)), batch)


def detached(model: nn.Module) -> Params:
    return {name: p.detach() for name, p in model.named_parameters()}


def add(parameters: Iterable[Tensor], grads: Iterable[Tensor]) -> None:
    for p, g in zip(parameters, grads, strict=True):
        p.grad = g if p.grad is None else p.grad.add_(g)


def add_mean(model: nn.Module, grads: Params) -> None:
    """The mean over tasks of ``grads`` [T, ...] into ``.grad``."""
    add(model.parameters(), (grads[name].mean(0) for name, _ in model.named_parameters()))


def plain_gradients_vmapped(model: nn.Module, loss: Loss, tasks: mp.Task, inner: Inner) -> None:
    """The same gradients as ``plain_gradients``, of all tasks at once, each at its own copy of the parameters."""
    gradient = vmap(grad(at_parameters(model, loss)))
    y = {name: p.expand(count(tasks), *p.shape) for name, p in detached(model).items()}
    for _ in range(inner.steps):
        gradient(y, tasks.support)
    add_mean(model, gradient(y, tasks.query))


def maml_by_torch_func(model: nn.Module, loss: Loss, tasks: mp.Task, inner: Inner) -> None:
    """The gradient of an unrolled loop, vmapped over tasks."""
    at = at_parameters(model, loss)

    def objective(x: Params, support: Batch, query: Batch) -> Tensor:
        y = x
        for _ in range(inner.steps):
            slope = grad(at)(y, support)
            y = {name: y[name] - inner.lr * slope[name] for name in y}
        return at(y, query)

    add_mean(model, vmap(grad(objective), (None, 0, 0))(detached(model), tasks.support, tasks.query))


def maml_by_mixed_mode(model: nn.Module, loss: Loss, tasks: mp.Task, inner: Inner) -> None:
    """The same gradient by a walk back, as MixFlow-MG has it (arXiv 2505.00793): u <- u - lr H(y_k) u, from v at y_K.

    Each product is forward over reverse, at a point y_k that is kept, so that no graph outlives a step: K points, and
    the activations of one gradient and its derivative.
    """
    gradient, x = grad(at_parameters(model, loss)), detached(model)
    for support, query in each(tasks):
        points = [x]
        for _ in range(inner.steps):
            slope = gradient(points[-1], support)
            points.append({name: y - inner.lr * slope[name] for name, y in points[-1].items()})
        u = gradient(points.pop(), query)
        while points:
            turned = hessian_vector(gradient, points.pop(), support, u)
            u = {name: one - inner.lr * turned[name] for name, one in u.items()}
        add(model.parameters(), (u[name] / count(tasks) for name in x))


def hessian_vector(gradient: Callable[[Params, Batch], Params], y: Params, batch: Batch, u: Params) -> Params:
    """Forward over reverse. Targets of regression get a tangent of zeros: torch's mse_loss fails on its own zeros."""
    inputs, targets = batch
    if targets.is_floating_point():
        along = (u, torch.zeros_like(targets))
        return jvp(lambda y, targets: gradient(y, (inputs, targets)), (y, targets), along)[1]
    return jvp(lambda y: gradient(y, batch), (y,), (u,))[1]


def adapted(model: nn.Module, objective: Callable[[nn.Module], Tensor], inner: Inner) -> nn.Module:
    """A deep copy of the model after K steps of torch.optim.SGD on ``objective``."""
    net = copy.deepcopy(model)
    optimizer = torch.optim.SGD(net.parameters(), lr=inner.lr)
    for _ in range(inner.steps):
        optimizer.zero_grad()
        objective(net).backward(inputs=list(net.parameters()))
        optimizer.step()
    return net


def fobmaml_by_equation_2(model: nn.Module, loss: Loss, tasks: mp.Task, inner: Inner, *, nu: float = 0.1) -> None:
    """-lam (y_nu - y_0) / nu: both solves go K steps from x."""
    x = tuple(model.parameters())
    for support, query in each(tasks):

        def perturbed(net: nn.Module, weight: float, support: Batch = support, query: Batch = query) -> Tensor:
            value = loss(net, support) + proximal_term(inner.lam, net.parameters(), x)
            return value + weight * loss(net, query) if weight else value

        moved, base = (adapted(model, partial(perturbed, weight=weight), inner) for weight in (nu, 0.0))
        scale = -inner.lam / nu / count(tasks)
        with torch.no_grad():
            add(x, [(a - b) * scale for a, b in zip(moved.parameters(), base.parameters(), strict=True)])


def derivative_of_equation_2(model: nn.Module, loss: Loss, tasks: mp.Task, inner: Inner) -> None:
    """-lam z with z = d y_nu / d nu at nu = 0 after K steps from x: every step z <- z - lr ((H + lam I) z + v)."""
    x = tuple(model.parameters())
    for support, query in each(tasks):
        net = copy.deepcopy(model)
        y, z = list(net.parameters()), [torch.zeros_like(p) for p in x]
        for _ in range(inner.steps):
            value = loss(net, support) + proximal_term(inner.lam, y, [p.detach() for p in x])
            slope = torch.autograd.grad(value, y, create_graph=True)
            turned = torch.autograd.grad(slope, y, z)
            v = torch.autograd.grad(loss(net, query), y)
            with torch.no_grad():
                z = [a - inner.lr * (b + c) for a, b, c in zip(z, turned, v, strict=True)]
                for p, g in zip(y, slope, strict=True):
                    p -= inner.lr * g
        add(x, [a * (-inner.lam / count(tasks)) for a in z])


def imaml_by_plain_cg(model: nn.Module, loss: Loss, tasks: mp.Task, inner: Inner) -> None:
    """Conjugate gradients on (H + lam I) g = lam v at y_K that go on where curvature is negative."""
    x = tuple(model.parameters())
    for support, query in each(tasks):

        def objective(net: nn.Module, support: Batch = support) -> Tensor:
            return loss(net, support) + proximal_term(inner.lam, net.parameters(), x)

        net = adapted(model, objective, inner)
        y = list(net.parameters())
        slope = flatten(torch.autograd.grad(objective(net), y, create_graph=True))
        z, r = torch.zeros_like(slope), inner.lam * flatten(torch.autograd.grad(loss(net, query), y))
        p = r
        for _ in range(inner.cg_steps):
            q = flatten(torch.autograd.grad(slope, y, p, retain_graph=True))
            square = r @ r
            step = square / (p @ q)
            z, r = z + step * p, r - step * q
            p = r + (r @ r) / square * p
        parts = z.detach().split([p.numel() for p in x])
        add(x, [part.view_as(p) / count(tasks) for p, part in zip(x, parts, strict=True)])


def flatten(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])
