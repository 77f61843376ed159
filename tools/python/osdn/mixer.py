"""The OSDN mixer: delta rule with an online diagonal preconditioner on the write key.

Two forms of the same function. The token recurrence states the definition and serves checking and
decoding. The chunk form serves training: all that does not depend on the carried state is batched
over batch * heads * chunks, and a loop over chunks does one small product each for the carry.

Shapes: q, k [B, H, T, K] (k normalised, q normalised and scaled), v [B, H, T, V], beta and
log_alpha [B, H, T], state S [B, H, K, V] (the transpose of the mathematics' V x K), d [B, H, K].
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Preconditioner:
    """Constants of the preconditioner's update; eta 0 without APF is plain DeltaNet."""

    eta: float = 0.003
    eps: float = 1e-6
    d_min: float = 0.5
    d_max: float = 2.0
    anchor: float = 1.0


class MixerOutput(NamedTuple):
    """Outputs o [B, H, T, V] and the state after the last token."""

    o: Tensor
    s: Tensor
    d: Tensor


def token_precondition(k: Tensor, beta: Tensor, log_alpha: Tensor | None, d: Tensor,
                       p: Preconditioner) -> Tensor:
    """One step d_t -> d_{t+1}; k [..., K], beta and log_alpha [...]. The clip is not optional."""
    kappa = k * k
    gain = 1 - beta * (d * kappa).sum(-1)
    rate = p.eta * beta * gain / kappa.sum(-1).clamp_min(p.eps)
    pulled = d if log_alpha is None else p.anchor + log_alpha.exp()[..., None] * (d - p.anchor)
    return (pulled + rate[..., None] * kappa).clamp(p.d_min, p.d_max)


def token_mixer(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_alpha: Tensor | None,
                s: Tensor, d: Tensor, p: Preconditioner) -> MixerOutput:
    """The definition, token by token."""
    outputs = []
    for t in range(q.shape[2]):
        key, value, rate = k[:, :, t], v[:, :, t], beta[:, :, t]
        read = torch.einsum("bhkv,bhk->bhv", s, key)
        update = rate[..., None] * (value - read)
        s = s + (d * key)[..., None] * update[:, :, None]
        outputs.append(torch.einsum("bhkv,bhk->bhv", s, q[:, :, t]))
        d = token_precondition(key, rate, None if log_alpha is None else log_alpha[:, :, t], d, p)
    return MixerOutput(torch.stack(outputs, 2), s, d)


class UnitLowerInverse(torch.autograd.Function):
    """(I + M)^-1 for strictly lower triangular M [..., C, C], C a power of two.

    Inverts by doubling diagonal blocks, which is stable where a Neumann product is not (repeated
    keys). The gradient needs the inverse only, so autograd does not follow the doubling.
    """

    @staticmethod
    def forward(ctx, m: Tensor) -> Tensor:
        if m.is_cuda and m.dtype == torch.float32:
            from osdn.gpu_kernels import invert_unit_lower
            inverse = invert_unit_lower(m)
        else:
            inverse = UnitLowerInverse.by_doubling(m)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def by_doubling(m: Tensor) -> Tensor:
        size, lead = m.shape[-1], m.shape[:-2]
        inverse = torch.ones(*lead, size, 1, 1, dtype=m.dtype, device=m.device)
        block = 1
        while block < size:
            pairs = size // (2 * block)
            tiles = m.reshape(*lead, pairs, 2 * block, pairs, 2 * block)
            tiles = tiles.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
            upper, lower = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
            corner = -(lower @ tiles[..., block:, :block] @ upper)
            top = torch.cat([upper, torch.zeros_like(upper)], -1)
            inverse = torch.cat([top, torch.cat([corner, lower], -1)], -2)
            block *= 2
        return inverse.reshape(*lead, size, size)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        transposed = inverse.transpose(-1, -2)
        return -(transposed @ grad @ transposed).tril(-1)


def scan_affine(start: Tensor, matrix: Tensor, offset: Tensor,
                keep: Tensor) -> tuple[Tensor, Tensor]:
    """x_{n+1} = matrix_n (keep_n x_n) + offset_n over dim 2; returns all keep_n x_n and the last.

    start [B, H, K, V], matrix [B, H, N, K, K], offset [B, H, N, K, V], keep [B, 1, N, 1, 1].
    """
    states = [start]
    # unbind, because the gradient of indexing would write the whole tensor once a chunk
    for step, added in zip((matrix * keep).unbind(2), offset.unbind(2), strict=True):
        states.append(added + step @ states[-1])
    return torch.stack(states[:-1], 2) * keep, states[-1]


def chunk_precondition(k: Tensor, beta: Tensor, log_alpha: Tensor | None, d: Tensor,
                       p: Preconditioner, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Phase 1: every d_t while the box is not touched.

    k [B, H, N, C, K], beta and log_alpha [B, H, N, C]. Returns d [B, H, N, C, K], the last d, and
    outside [B, H]: whether any d of the row left the box, so that this form does not hold there.
    """
    size = k.shape[-2]
    kappa = k * k
    total = kappa.sum(-1)
    c = p.eta * beta / total.clamp_min(p.eps)
    if log_alpha is None:
        log_alpha = torch.zeros_like(beta)
    upto = log_alpha.cumsum(-1)
    before = torch.nn.functional.pad(upto, (1, 0))  # log A_t, t = 1 .. C + 1
    strictly = torch.ones(size + 1, size, dtype=torch.bool, device=k.device).tril(-1)
    # Ratios A_t / A_{j+1} from differences of logs: an underflown A is never divided by.
    difference = before[..., :, None] - upto[..., None, :]
    ratio = difference.masked_fill(~strictly, -torch.inf).exp()
    a_before = before[..., :size].exp()
    gram = ratio[..., :size, :] * (kappa @ kappa.transpose(-1, -2))
    inverse = UnitLowerInverse.apply(gram * (c * beta)[..., None, :])
    s_free = inverse @ (p.anchor * total + (gram @ c[..., None])[..., 0])[..., None]
    s_carry = inverse @ (a_before[..., None] * kappa)
    last = ratio[..., size, :, None] * kappa
    identity = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    matrix = (before[..., size].exp()[..., None, None] * identity
              - last.transpose(-1, -2) @ ((c * beta)[..., None] * s_carry))
    offset = last.transpose(-1, -2) @ (c[..., None] * (1 - beta[..., None] * s_free))
    e, e_end = scan_affine((d - p.anchor)[..., None],
                           matrix, offset + (1 - keep) * (1 - p.anchor) * matrix.sum(-1, True),
                           keep)
    e = e + (1 - keep) * (1 - p.anchor)
    s = s_free + s_carry @ e
    written = (c[..., None] * (1 - beta[..., None] * s)) * kappa
    d_all = p.anchor + a_before[..., None] * e.transpose(-1, -2) + ratio[..., :size, :] @ written
    d_end = e_end[..., 0] + p.anchor
    low = torch.minimum(d_all.amin((-3, -2, -1)), d_end.amin(-1))
    high = torch.maximum(d_all.amax((-3, -2, -1)), d_end.amax(-1))
    return d_all, d_end, ((low < p.d_min) | (high > p.d_max)).detach()


def clipped_precondition(k: Tensor, beta: Tensor, log_alpha: Tensor | None, d: Tensor,
                         p: Preconditioner, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The token recurrence for d alone, clip included; same shapes as chunk_precondition."""
    every = []
    for n in range(k.shape[2]):
        d = 1 + keep[:, :, n, :, 0] * (d - 1)
        for t in range(k.shape[3]):
            every.append(d)
            decay = None if log_alpha is None else log_alpha[:, :, n, t]
            d = token_precondition(k[:, :, n, t], beta[:, :, n, t], decay, d, p)
    return torch.stack(every, 2).reshape(k.shape), d


def precondition(k: Tensor, beta: Tensor, log_alpha: Tensor | None, d: Tensor, p: Preconditioner,
                 keep: Tensor) -> tuple[Tensor, Tensor]:
    """Phase 1, exact: the chunk form, or the clipped recurrence for rows that left the box.

    On a GPU always the recurrence, as one kernel: looking at the flag would stall the stream and
    could not be captured in a CUDA graph.
    """
    if k.is_cuda:
        from osdn.gpu_kernels import ClippedScan  # Triton exists only where CUDA does
        kappa = k * k
        rate = p.eta * beta / kappa.sum(-1).clamp_min(p.eps)
        alpha = torch.ones_like(beta) if log_alpha is None else log_alpha.exp()
        return ClippedScan.apply(kappa, beta, rate, alpha, keep[:, 0, :, 0, 0], d, p.d_min,
                                 p.d_max, p.anchor)
    d_all, d_end, outside = chunk_precondition(k, beta, log_alpha, d, p, keep)
    if bool(outside.any()):
        exact_all, exact_end = clipped_precondition(k, beta, log_alpha, d, p, keep)
        d_all = torch.where(outside[..., None, None, None], exact_all, d_all)
        d_end = torch.where(outside[..., None], exact_end, d_end)
    return d_all, d_end


def chunk_mixer(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_alpha: Tensor | None,
                s: Tensor, d: Tensor, p: Preconditioner, chunk: int = 64,
                keep: Tensor | None = None) -> MixerOutput:
    """Both phases in chunks. keep [B, N]: 0 where a chunk starts a new sequence (fresh state)."""
    batch, heads, length, _ = q.shape
    pad = -length % chunk
    if pad:  # zero keys with zero beta and log alpha leave the state as it is
        q, k, v = (torch.nn.functional.pad(x, (0, 0, 0, pad)) for x in (q, k, v))
        beta = torch.nn.functional.pad(beta, (0, pad))
        log_alpha = None if log_alpha is None else torch.nn.functional.pad(log_alpha, (0, pad))
    count = (length + pad) // chunk
    q, k, v = (x.reshape(batch, heads, count, chunk, -1) for x in (q, k, v))
    beta = beta.reshape(batch, heads, count, chunk)
    log_alpha = None if log_alpha is None else log_alpha.reshape(beta.shape)
    keep = torch.ones(batch, count).to(q) if keep is None else keep.to(q.dtype)
    keep = keep[:, None, :, None, None]

    write = k
    if p.eta != 0 or log_alpha is not None:
        d_all, d = precondition(k, beta, log_alpha, d, p, keep)
        write = d_all * k

    transposed = write.transpose(-1, -2)
    inverse = UnitLowerInverse.apply((beta[..., None] * (k @ transposed)).tril(-1))
    free = inverse @ (beta[..., None] * v)
    carry = inverse @ (beta[..., None] * k)
    identity = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    states, s = scan_affine(s, identity - transposed @ carry, transposed @ free, keep)
    update = free - carry @ states
    o = q @ states + (q @ transposed).tril() @ update
    return MixerOutput(o.reshape(batch, heads, length + pad, -1)[:, :, :length], s, d)
