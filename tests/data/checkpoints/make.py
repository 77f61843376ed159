"""Makes the checkpoints in this folder with real torch, transformers and flash-linear-attention.

    python3 -m venv /tmp/fla && /tmp/fla/bin/pip install torch transformers flash-linear-attention
    /tmp/fla/bin/python tests/data/checkpoints/make.py

Needs neither GPU nor our code: fla's DeltaNetForCausalLM builds on a CPU, and where its layers would
call Triton they call fla's own naive recurrence and plain PyTorch instead. logits.safetensors holds
token ids and the float32 logits of that model; README.md says what each folder is for.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import fla.layers.delta_net as layer
import fla.modules.mlp as mlp
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
import torch.nn.functional as F
from fla.models import DeltaNetConfig, DeltaNetForCausalLM
from fla.modules import FusedRMSNormGated, RMSNorm, ShortConvolution
from fla.ops.delta_rule.naive import delta_rule_recurrence
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

HERE = Path(__file__).resolve().parent
TOKENS = 96  # more than a chunk of 64
SMALL = {"num_heads": 2, "initializer_range": 0.3, "fuse_norm": False, "fuse_swiglu": False,
         "fuse_cross_entropy": False, "vocab_size": 40}


def naive_delta_rule(q, k, v, beta, use_qk_l2norm_in_kernel=False, **_):
    """fla's naive recurrence behind the interface of its kernels ([B, T, H, D])."""
    if use_qk_l2norm_in_kernel:
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o, state = delta_rule_recurrence(q, k, v, beta.transpose(1, 2))
    return o.transpose(1, 2), state


def convolve(self, x, **_):
    taps = self.weight.shape[-1]
    y = F.conv1d(F.pad(x.transpose(1, 2), (taps - 1, 0)), self.weight, self.bias,
                 groups=self.weight.shape[0]).transpose(1, 2)
    return (F.silu(y) if self.activation == "silu" else y), None


def norm(self, x, *_, **__):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def use_plain_pytorch() -> None:
    layer.chunk_delta_rule = layer.fused_recurrent_delta_rule = naive_delta_rule
    layer.elu_p1 = lambda x: F.elu(x) + 1
    mlp.swiglu = lambda gate, up: F.silu(gate) * up
    ShortConvolution.forward = convolve
    RMSNorm.forward = norm
    FusedRMSNormGated.forward = lambda self, x, g: norm(self, x) * F.silu(g)


def make(seed: int, **options) -> DeltaNetForCausalLM:
    torch.manual_seed(seed)
    model = DeltaNetForCausalLM(DeltaNetConfig(**{**SMALL, **options})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:  # a norm of ones would hide a mistake
                weight.uniform_(0.5, 1.5)
    return model


@torch.no_grad()
def write_logits(model, folder: Path) -> None:
    ids = torch.randint(3, model.config.vocab_size, (TOKENS,))
    save_file({"ids": ids, "logits": model(ids[None]).logits[0].contiguous()},
              str(folder / "logits.safetensors"))


def fresh(name: str) -> Path:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def write_fla_plain() -> None:
    folder = fresh("fla_plain")
    model = make(1, hidden_size=16, num_hidden_layers=2, intermediate_size=24)
    model.save_pretrained(folder)
    write_logits(model, folder)


def write_fla_options() -> None:
    """Output gate, elu, sum norm, wide values, negative eigenvalues, tied embeddings; torch.save."""
    folder = fresh("fla_options")
    model = make(2, hidden_size=16, num_hidden_layers=1, intermediate_size=24,
                 expand_v=2.0, use_gate=True, qk_activation="elu", qk_norm="sum",
                 allow_neg_eigval=True, tie_word_embeddings=True)
    model.config.save_pretrained(folder)
    write_logits(model, folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def dcp_rank(rank: int, folder: Path) -> None:
    use_plain_pytorch()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29411")
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    model = make(3, hidden_size=8, num_hidden_layers=1, intermediate_size=12)
    # As FSDP2 shards: along the first dimension.
    weights = {name: distribute_tensor(weight.detach(), mesh, [Shard(0)])
               for name, weight in model.state_dict().items()}
    moments = {"lm_head.weight": {"exp_avg": weights["lm_head.weight"]}}
    dcp.save({"model": weights, "optimizer": {"state": moments}, "train_state": {"step": 7}},
             checkpoint_id=str(folder))
    if rank == 0:
        model.config.save_pretrained(folder)
        write_logits(model, folder)
    dist.destroy_process_group()


def write_dcp() -> None:
    mp.spawn(dcp_rank, args=(fresh("fla_dcp"),), nprocs=2)


if __name__ == "__main__":
    use_plain_pytorch()
    write_fla_plain()
    write_fla_options()
    write_dcp()
    for file in sorted(HERE.glob("*/*")):
        print(file.relative_to(HERE), file.stat().st_size)
    print(json.dumps({"torch": torch.__version__}))
