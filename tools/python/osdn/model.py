"""OSDN language model in flash-linear-attention's layout; tensor names are the checkpoint's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from osdn.mixer import Preconditioner, chunk_mixer, token_mixer


@dataclasses.dataclass(frozen=True)
class OsdnOptions:
    """The `osdn` object of config.json."""

    eta: float = 0.003
    eps: float = 1e-6
    d_min: float = 0.5
    d_max: float = 2.0
    apf: str = "none"
    apf_anchor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Config:
    """config.json's keys with fla's defaults; keys this model does not use are ignored."""

    model_type: str = "osdn"
    hidden_size: int = 2048
    num_heads: int = 16
    num_hidden_layers: int = 24
    expand_k: float = 1.0
    expand_v: float = 1.0
    conv_size: int = 4
    use_gate: bool = False
    use_beta: bool = True
    use_short_conv: bool = True
    qk_norm: str = "l2"
    qk_activation: str = "silu"
    allow_neg_eigval: bool = False
    hidden_ratio: int | None = 4
    intermediate_size: int | None = None
    norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    vocab_size: int = 32000
    bos_token_id: int = 1
    eos_token_id: int = 2
    osdn: OsdnOptions = OsdnOptions()

    def __post_init__(self) -> None:
        for key, known in {"qk_norm": ("l2", "sum"), "osdn.apf": ("none", "scalar"),
                           "qk_activation": ("silu", "relu", "elu", "identity"),
                           "model_type": ("osdn", "delta_net")}.items():
            value = self.osdn.apf if key == "osdn.apf" else getattr(self, key)
            if value not in known:
                raise ValueError(f"config.json: {key} is {value!r}, known are {known}")

    @staticmethod
    def from_json(path: Path) -> Config:
        """Reads config.json; a delta_net checkpoint is the case eta 0 without APF."""
        raw = json.loads(Path(path).read_text("utf-8"))
        names = {field.name for field in dataclasses.fields(Config)}
        values = {key: value for key, value in raw.items() if key in names}
        plain = {"eta": 0.0, "apf": "none"} if raw.get("model_type") == "delta_net" else {}
        values["osdn"] = OsdnOptions(**{**raw.get("osdn", {}), **plain})
        return Config(**values)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @property
    def key_size(self) -> int:
        return int(self.hidden_size * self.expand_k) // self.num_heads

    @property
    def value_size(self) -> int:
        return int(self.hidden_size * self.expand_v) // self.num_heads

    @property
    def mlp_size(self) -> int:
        if self.intermediate_size is not None:
            return self.intermediate_size
        size = int(self.hidden_size * (self.hidden_ratio or 4) * 2 / 3)
        return 256 * ((size + 255) // 256)

    @property
    def preconditioner(self) -> Preconditioner:
        o = self.osdn
        return Preconditioner(o.eta, o.eps, o.d_min, o.d_max, o.apf_anchor)


@dataclasses.dataclass
class LayerState:
    """What one layer carries from token to token; nothing in it grows with position."""

    tails: list[Tensor]  # q, k, v convolution inputs [B, conv_size - 1, dim]
    s: Tensor  # [B, H, K, V]
    d: Tensor  # [B, H, K]


@dataclasses.dataclass
class Layout:
    """How rows of a batch are laid out: padding and fresh sequences."""

    valid: Tensor | None = None  # [B, T], 0 on padding: padding leaves the state as it is
    keep: Tensor | None = None  # [B, T / 64], 0 where a chunk starts a new sequence


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in at least float32; training may ask for a narrow result."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps
        self.narrow: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight
        return y if self.narrow is None else y.to(self.narrow)


class ShortConvolution(nn.Module):
    """Depthwise causal convolution, then SiLU; the last tap multiplies the current input."""

    def __init__(self, size: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, 1, taps))

    def forward(self, x: Tensor, tail: Tensor, activate: bool) -> tuple[Tensor, Tensor]:
        taps, length = self.weight.shape[-1], x.shape[1]
        joined = torch.cat([tail.to(x.dtype), x], 1)
        weight = self.weight[:, 0].to(x.dtype)
        y = sum(joined[:, i:i + length] * weight[:, i] for i in range(taps))
        return (F.silu(y) if activate else y), joined[:, length:]


class Mixer(nn.Module):
    """Projections, short convolutions, gates and the OSDN recurrence."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = self.config = config
        keys, values = c.num_heads * c.key_size, c.num_heads * c.value_size
        self.q_proj = nn.Linear(c.hidden_size, keys, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, values, bias=False)
        if c.use_short_conv:
            self.q_conv1d = ShortConvolution(keys, c.conv_size)
            self.k_conv1d = ShortConvolution(keys, c.conv_size)
            self.v_conv1d = ShortConvolution(values, c.conv_size)
        if c.use_beta:
            self.b_proj = nn.Linear(c.hidden_size, c.num_heads, bias=False)
        if c.osdn.apf == "scalar":
            self.a_proj = nn.Linear(c.hidden_size, c.num_heads)
        if c.use_gate:
            self.g_proj = nn.Linear(c.hidden_size, values, bias=False)
        self.o_norm = RMSNorm(c.value_size, c.norm_eps)
        self.o_proj = nn.Linear(values, c.hidden_size, bias=False)

    def convolve(self, name: str, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """Projection and convolution of q, k or v; as in fla v always gets the SiLU."""
        c = self.config
        activate = name == "v" or c.qk_activation == "silu"
        if c.use_short_conv:
            return getattr(self, f"{name}_conv1d")(x, tail, activate)
        return (F.silu(x) if activate else x), tail

    def normalise(self, x: Tensor) -> Tensor:
        c = self.config
        if c.qk_activation == "relu":
            x = F.relu(x)
        elif c.qk_activation == "elu":
            x = F.elu(x) + 1
        if c.qk_norm == "sum":
            return x / x.sum(-1, keepdim=True)
        return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)

    def forward(self, x: Tensor, state: LayerState,
                layout: Layout) -> tuple[Tensor, LayerState]:
        c = self.config
        batch, length, _ = x.shape
        wide = x.dtype if x.dtype == torch.float64 else torch.float32
        heads, tails = {}, []
        for name, tail in zip("qkv", state.tails, strict=True):
            projected = getattr(self, f"{name}_proj")(x)
            if layout.valid is not None:
                projected = projected * layout.valid[..., None].to(projected.dtype)
            mixed, new_tail = self.convolve(name, projected, tail)
            tails.append(new_tail)
            heads[name] = mixed.to(wide).view(batch, length, c.num_heads, -1).transpose(1, 2)
        q = self.normalise(heads["q"]) * c.key_size ** -0.5
        k, v = self.normalise(heads["k"]), heads["v"]
        if layout.valid is not None and (c.qk_activation == "elu" or c.qk_norm == "sum"):
            k = torch.where(layout.valid[:, None, :, None] > 0, k, 0)
        beta = (self.b_proj(x).to(wide).sigmoid() if c.use_beta
                else x.new_ones(batch, length, c.num_heads, dtype=wide)).transpose(1, 2)
        if c.allow_neg_eigval:
            beta = beta * 2
        log_alpha = None
        if c.osdn.apf == "scalar":
            log_alpha = F.logsigmoid(self.a_proj(x).to(wide)).transpose(1, 2)
        if layout.valid is not None:
            mask = layout.valid[:, None].to(wide)
            beta, log_alpha = beta * mask, None if log_alpha is None else log_alpha * mask

        with torch.autocast(x.device.type, enabled=False):
            if length == 1:
                out = token_mixer(q, k, v, beta, log_alpha, state.s, state.d, c.preconditioner)
            else:
                out = chunk_mixer(q, k, v, beta, log_alpha, state.s, state.d, c.preconditioner,
                                  keep=layout.keep)
        o = self.o_norm(out.o.transpose(1, 2))
        if c.use_gate:
            o = o * F.silu(self.g_proj(x).to(wide)).view(o.shape)
        return self.o_proj(o.reshape(batch, length, -1)), LayerState(tails, out.s, out.d)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.down_proj = nn.Linear(config.mlp_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attn = Mixer(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, state: LayerState,
                layout: Layout) -> tuple[Tensor, LayerState]:
        mixed, state = self.attn(self.attn_norm(x), state, layout)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), state


class Backbone(nn.Module):
    """Embeddings, blocks, final norm."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)


class LanguageModel(nn.Module):
    """The whole model. forward maps ids [B, T] and a state to logits and the next state."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, apf_bias: float = 4.0) -> None:
        """Normal(0.02) weights, residual outputs scaled down by depth, alpha near 1."""
        depth = (2 * self.config.num_hidden_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            scale = 0.02 * (depth if name.endswith(("o_proj.weight", "down_proj.weight")) else 1)
            if "conv1d" in name:
                scale = 0.3
            parameter.normal_(0, scale, generator=generator)
        for block in self.model.layers:
            if self.config.osdn.apf == "scalar":
                block.attn.a_proj.bias.fill_(apf_bias)

    def new_state(self, batch: int) -> list[LayerState]:
        """The state before the first token: S = 0, d = 1, empty convolution tails."""
        c, weight = self.config, self.model.embeddings.weight
        sizes = (c.num_heads * c.key_size,) * 2 + (c.num_heads * c.value_size,)
        return [LayerState([weight.new_zeros(batch, c.conv_size - 1, size) for size in sizes],
                           weight.new_zeros(batch, c.num_heads, c.key_size, c.value_size),
                           weight.new_ones(batch, c.num_heads, c.key_size))
                for _ in range(c.num_hidden_layers)]

    def hidden(self, ids: Tensor, state: list[LayerState],
               layout: Layout) -> tuple[Tensor, list[LayerState]]:
        """Final hidden vectors and the next state."""
        x = self.model.embeddings(ids)
        new_state = []
        for block, layer_state in zip(self.model.layers, state, strict=True):
            x, after = block(x, layer_state, layout)
            new_state.append(after)
        return self.model.norm(x), new_state

    def logits(self, hidden: Tensor) -> Tensor:
        tied = self.config.tie_word_embeddings
        return F.linear(hidden, (self.model.embeddings if tied else self.lm_head).weight)

    def forward(self, ids: Tensor, state: list[LayerState] | None = None,
                layout: Layout | None = None) -> tuple[Tensor, list[LayerState]]:
        state = self.new_state(ids.shape[0]) if state is None else state
        hidden, state = self.hidden(ids, state, layout or Layout())
        return self.logits(hidden), state

    @torch.no_grad()
    def generate(self, prompts: list[list[int]], limit: int, stops: set[int],
                 temperature: float = 0.0, seed: int = 0) -> list[list[int]]:
        """Continues every prompt, greedily unless temperature > 0; stop tokens are left out."""
        device = self.model.embeddings.weight.device
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)
        valid = torch.tensor([[0.0] * (longest - len(p)) + [1.0] * len(p) for p in prompts],
                             device=device)
        hidden, state = self.hidden(ids, self.new_state(len(prompts)), Layout(valid))
        generator = torch.Generator(device).manual_seed(seed)
        outputs: list[list[int]] = [[] for _ in prompts]
        running = set(range(len(prompts)))
        for _ in range(limit):
            logits = self.logits(hidden[:, -1]).float()
            if temperature > 0:
                weights = (logits / temperature).softmax(-1)
                token = torch.multinomial(weights, 1, generator=generator)
            else:
                token = logits.argmax(-1, keepdim=True)
            for row, value in enumerate(token[:, 0].tolist()):
                if row in running and value in stops:
                    running.discard(row)
                elif row in running:
                    outputs[row].append(value)
            if not running:
                break
            hidden, state = self.hidden(token, state, Layout())
        return outputs


def save(model: LanguageModel, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(model.config.to_json(), "utf-8")
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous()
               for name, tensor in model.state_dict().items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def load(folder: Path, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Reads a checkpoint folder; missing and extra tensors are errors that name them."""
    folder = Path(folder)
    model = LanguageModel(Config.from_json(folder / "config.json")).to(dtype)
    tensors = load_file(str(folder / "model.safetensors"))
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()})
    return model.eval()
