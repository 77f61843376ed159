"""Triton kernels for training: the clipped recurrence of d, and unit lower triangular inverses.

The recurrence: early in training keys are concentrated and d often reaches its box, where the
chunk form does not hold and a token loop in PyTorch would take thousands of launches. One program
a (batch, head) row walks the tokens with d in registers; the next token's operands are loaded one
step ahead. The inverse: one program a matrix, row by row in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _forward(kappa, beta, rate, alpha, keep, start, out, end, length, heads, low, high, anchor,
             SIZE: tl.constexpr, CHUNK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, SIZE)
    d = tl.load(start + row * SIZE + lane)
    keep += (row // heads) * (length // CHUNK)
    base = row * length
    x = tl.load(kappa + base * SIZE + lane)
    b, c, a = tl.load(beta + base), tl.load(rate + base), tl.load(alpha + base)
    for t in range(0, length):
        ahead = base + tl.minimum(t + 1, length - 1)
        next_x = tl.load(kappa + ahead * SIZE + lane)
        next_b, next_c = tl.load(beta + ahead), tl.load(rate + ahead)
        next_a = tl.load(alpha + ahead)
        if t % CHUNK == 0:
            kept = tl.load(keep + t // CHUNK)
            d = 1 + kept * (d - 1)
        tl.store(out + (base + t) * SIZE + lane, d)
        gain = 1 - b * tl.sum(d * x, 0)
        d = anchor + a * (d - anchor) + c * gain * x
        d = tl.minimum(tl.maximum(d, low), high)
        x, b, c, a = next_x, next_b, next_c, next_a
    tl.store(end + row * SIZE + lane, d)


@triton.jit
def _backward(kappa, beta, rate, alpha, keep, every, grad_every, grad_end, grad_kappa, grad_beta,
              grad_rate, grad_alpha, grad_start, length, heads, low, high, anchor,
              SIZE: tl.constexpr, CHUNK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, SIZE)
    adjoint = tl.load(grad_end + row * SIZE + lane)  # of d_{t+1}
    keep += (row // heads) * (length // CHUNK)
    base = row * length
    at = base + length - 1
    x, d = tl.load(kappa + at * SIZE + lane), tl.load(every + at * SIZE + lane)
    g = tl.load(grad_every + at * SIZE + lane)
    b, c, a = tl.load(beta + at), tl.load(rate + at), tl.load(alpha + at)
    for step in range(0, length):
        t = length - 1 - step
        at = base + t
        ahead = base + tl.maximum(t - 1, 0)
        next_x, next_d = tl.load(kappa + ahead * SIZE + lane), tl.load(every + ahead * SIZE + lane)
        next_g = tl.load(grad_every + ahead * SIZE + lane)
        next_b, next_c = tl.load(beta + ahead), tl.load(rate + ahead)
        next_a = tl.load(alpha + ahead)
        inner = tl.sum(d * x, 0)
        gain = 1 - b * inner
        free = anchor + a * (d - anchor) + c * gain * x
        adjoint = tl.where((free < low) | (free > high), 0.0, adjoint)
        along = tl.sum(adjoint * x, 0)
        tl.store(grad_alpha + at, tl.sum(adjoint * (d - anchor), 0))
        tl.store(grad_rate + at, along * gain)
        tl.store(grad_beta + at, -c * along * inner)
        tl.store(grad_kappa + at * SIZE + lane, c * gain * adjoint - c * b * along * d)
        adjoint = g + a * adjoint - c * b * along * x
        if t % CHUNK == 0:
            adjoint *= tl.load(keep + t // CHUNK)
        x, d, g, b, c, a = next_x, next_d, next_g, next_b, next_c, next_a
    tl.store(grad_start + row * SIZE + lane, adjoint)


class ClippedScan(torch.autograd.Function):
    """d_{t+1} = clip(anchor + alpha (d_t - anchor) + rate (1 - beta <d_t, kappa_t>) kappa_t).

    kappa [B, H, N, C, K], beta, rate and alpha [B, H, N, C], keep [B, N], start [B, H, K], all
    float32. Returns every d_t and the last d.
    """

    @staticmethod
    def forward(ctx, kappa: Tensor, beta: Tensor, rate: Tensor, alpha: Tensor, keep: Tensor,
                start: Tensor, low: float, high: float,
                anchor: float) -> tuple[Tensor, Tensor]:
        batch, heads, count, chunk, size = kappa.shape
        kappa, beta, rate, alpha, keep, start = (
            x.contiguous() for x in (kappa, beta, rate, alpha, keep, start))
        every, end = torch.empty_like(kappa), torch.empty_like(start)
        ctx.constants = (count * chunk, heads, low, high, anchor)
        _forward[(batch * heads,)](kappa, beta, rate, alpha, keep, start, every, end,
                                   *ctx.constants, SIZE=size, CHUNK=chunk, num_warps=1)
        ctx.save_for_backward(kappa, beta, rate, alpha, keep, every)
        return every, end

    @staticmethod
    def backward(ctx, grad_every: Tensor, grad_end: Tensor) -> tuple[Tensor | None, ...]:
        kappa, beta, rate, alpha, keep, every = ctx.saved_tensors
        batch, heads, _, chunk, size = kappa.shape
        grads = [torch.empty_like(x) for x in (kappa, beta, rate, alpha)]
        grad_start = torch.empty_like(kappa[:, :, 0, 0])
        _backward[(batch * heads,)](
            kappa, beta, rate, alpha, keep, every, grad_every.contiguous(), grad_end.contiguous(),
            *grads, grad_start, *ctx.constants, SIZE=size, CHUNK=chunk, num_warps=1)
        return *grads, None, grad_start, None, None, None


@triton.jit
def _invert(m, out, SIZE: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * SIZE * SIZE
    index = tl.arange(0, SIZE)
    rows, columns = index[:, None], index[None, :]
    inverse = (rows == columns).to(tl.float32)
    for t in range(1, SIZE):
        row = tl.load(m + start + t * SIZE + index)  # zero from the diagonal on
        combined = tl.sum(row[:, None] * inverse, 0)
        inverse = tl.where(rows == t, inverse - combined[None, :], inverse)
    tl.store(out + start + rows * SIZE + columns, inverse)


def invert_unit_lower(m: Tensor) -> Tensor:
    """(I + M)^-1 for strictly lower triangular float32 M [..., C, C] by forward substitution."""
    m = m.contiguous()
    inverse = torch.empty_like(m)
    _invert[(m[..., 0, 0].numel(),)](m, inverse, SIZE=m.shape[-1], num_warps=4)
    return inverse
