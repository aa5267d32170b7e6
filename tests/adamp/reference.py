"""The update rules written out by hand, row by row in plain loops: independent of the package's code."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cosine(a: Tensor, b: Tensor, eps: float) -> float:
    return abs(float(a @ b)) / (max(float(a.norm()), eps) * max(float(b.norm()), eps))


def project(u: Tensor, w: Tensor, g: Tensor, *, delta: float, eps: float, wd_ratio: float):
    """Return the projected update, the decay ratio and the decision."""
    if w.ndim < 2:
        return u, 1.0, 0
    for decision, rows in ((1, w.shape[0]), (2, 1)):
        us, ws, gs = (x.reshape(rows, -1) for x in (u, w, g))
        if max(cosine(gs[k], ws[k], eps) for k in range(rows)) < delta / math.sqrt(ws.shape[1]):
            out = torch.empty_like(us)
            for k in range(rows):
                p = ws[k] / (ws[k].norm() + eps)
                out[k] = us[k] - p * (p @ us[k])
            return out.reshape(w.shape), wd_ratio, decision
    return u, 1.0, 0


def adamp_step(w, g, state, *, lr, betas, eps, weight_decay, delta, wd_ratio, nesterov):
    beta1, beta2 = betas
    state["t"] = state.get("t", 0) + 1
    state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
    state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g**2
    d = state["v"].sqrt() / math.sqrt(1 - beta2 ** state["t"]) + eps
    u = ((beta1 * state["m"] + (1 - beta1) * g) if nesterov else state["m"]) / d
    u, ratio, _ = project(u, w, g, delta=delta, eps=eps, wd_ratio=wd_ratio)
    w = w * (1 - lr * weight_decay * ratio)
    return w - lr / (1 - beta1 ** state["t"]) * u


def sgdp_step(
    w, g, state, *, lr, momentum, dampening, weight_decay, eps, delta, wd_ratio, nesterov, project_buffer=False
):
    state["b"] = momentum * state.get("b", 0) + (1 - dampening) * g
    u = g + momentum * state["b"] if nesterov else state["b"]
    u, ratio, _ = project(u, w, g, delta=delta, eps=eps, wd_ratio=wd_ratio)
    if project_buffer and not nesterov:
        state["b"] = u
    w = w * (1 - lr * weight_decay * ratio / (1 - momentum))
    return w - lr * u


def gradient(w: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """A random gradient orthogonal to each row ("channel"), to the tensor ("layer"), or to neither ("none")."""
    g = torch.randn(w.shape, generator=generator, dtype=w.dtype)
    if kind == "none":
        return g + 3 * w
    rows = w.shape[0] if kind == "channel" else 1
    g2, w2 = g.reshape(rows, -1), w.reshape(rows, -1)
    g2 = g2 - (g2 * w2).sum(1, keepdim=True) / (w2 * w2).sum(1, keepdim=True) * w2
    return g2.reshape(w.shape)


def adarem_step(w, g, state, *, lr, beta, lam, power, weight_decay):
    m = state.get("m", torch.zeros_like(w))
    top = float(m.abs().max())
    new = w.clone()
    for i in range(w.numel()):
        b = math.copysign(1, g[i]) * float(m[i]) / top if top > 0 and g[i] != 0 else 0.0
        new[i] = w[i] - lr * (1 + lam**power * b) * g[i] - lr * weight_decay * w[i]
    state["m"] = beta * m + (1 - beta) * g
    return new
