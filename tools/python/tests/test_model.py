"""The model: golden logits, splitting the prompt, generation, checkpoints, configuration."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osdn.model import Config, LanguageModel, OsdnOptions, load, save

CHECKPOINTS = ["tiny", "tiny_apf_gate"]


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("step", [1, 7, 64, 150])
def test_golden_logits(golden: Path, name: str, step: int) -> None:
    expected = load_file(str(golden / name / "expected.st"))
    model, state, parts = load(golden / name), None, []
    with torch.no_grad():
        for ids in expected["ids"].long()[None].split(step, 1):
            logits, state = model(ids, state)
            parts.append(logits[0])
    assert (torch.cat(parts) - expected["logits"]).abs().max() < 1e-4


def small(**changes: object) -> LanguageModel:
    config = Config(hidden_size=32, num_heads=2, num_hidden_layers=2, intermediate_size=48,
                    vocab_size=61, **changes)
    model = LanguageModel(config)
    model.initialise(torch.Generator().manual_seed(3))
    return model.eval()


@pytest.mark.parametrize("changes", [
    {}, {"use_short_conv": False}, {"use_beta": False}, {"use_gate": True},
    {"qk_activation": "elu", "qk_norm": "sum"}, {"qk_activation": "relu"},
    {"allow_neg_eigval": True}, {"expand_k": 0.5, "expand_v": 2.0},
    {"osdn": OsdnOptions(eta=0.5, apf="scalar"), "tie_word_embeddings": True}])
def test_batched_generation_equals_single(changes: dict[str, object]) -> None:
    model = small(**changes).double()
    prompts = [[1, 5, 9], [7] * 70 + [3], [4]]
    together = model.generate(prompts, 12, {2})
    assert together == [model.generate([prompt], 12, {2})[0] for prompt in prompts]


def test_save_and_load(tmp_path: Path) -> None:
    model = small(osdn=OsdnOptions(apf="scalar"))
    save(model, tmp_path)
    ids = torch.arange(50)[None]
    assert torch.equal(load(tmp_path)(ids)[0], model(ids)[0])


def test_delta_net_config_is_eta_zero(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "delta_net", "hidden_size": 1024, "num_heads": 8}))
    config = Config.from_json(path)
    assert (config.osdn.eta, config.osdn.apf, config.mlp_size) == (0.0, "none", 2816)
    path.write_text(json.dumps({"qk_activation": "gelu"}))
    with pytest.raises(ValueError, match="qk_activation.*gelu"):
        Config.from_json(path)
