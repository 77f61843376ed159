"""The Triton kernels against plain PyTorch; interpreted where there is no GPU."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
pytest.importorskip("triton")

from osdn.gpu_kernels import ClippedScan, invert_unit_lower  # noqa: E402  (after the choice of interpreter)
from osdn.mixer import Preconditioner, clipped_precondition  # noqa: E402


@pytest.mark.parametrize("eta", [0.3, 30.0])
def test_equals_token_loop(eta: float) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(1)
    k = torch.nn.functional.normalize(torch.randn(2, 3, 2, 8, 16, generator=generator), dim=-1)
    beta = torch.rand(2, 3, 2, 8, generator=generator)
    decay = -0.1 * torch.rand(2, 3, 2, 8, generator=generator)
    d = 1 + 0.2 * torch.rand(2, 3, 16, generator=generator)
    probe = torch.randn(k.shape, generator=generator).to(device)
    keep = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).to(device)
    p = Preconditioner(eta=eta, anchor=0.9)
    results = []
    for kernel in (False, True):
        leaves = [x.clone().to(device).requires_grad_() for x in (k, beta, decay, d)]
        key, rate, log_alpha, start = leaves
        if kernel:
            kappa = key * key
            speed = p.eta * rate / kappa.sum(-1).clamp_min(p.eps)
            every, end = ClippedScan.apply(kappa, rate, speed, log_alpha.exp(), keep, start,
                                           p.d_min, p.d_max, p.anchor)
        else:
            every, end = clipped_precondition(key, rate, log_alpha, start, p,
                                              keep[:, None, :, None, None])
        ((every * probe).sum() + (end * end).sum()).backward()
        results.append([every, end, *(leaf.grad for leaf in leaves)])
    for actual, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)


def test_inverse() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    m = torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(1)).tril(-1).to(device)
    expected = torch.linalg.inv(torch.eye(16, device=device, dtype=torch.float64) + m.double())
    torch.testing.assert_close(invert_unit_lower(m).double(), expected, atol=1e-3, rtol=1e-4)
