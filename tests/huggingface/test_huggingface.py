"""Exports against plain transformers: every structure, every preset, and the way back."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from litgpt.prompts import Default, model_name_to_prompt_style
from litgpt.scripts.convert_lit_checkpoint import convert_lit_checkpoint
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig

from pipeline import hashing, params
from pipeline.errors import UserError
from pipeline.huggingface import folder as huggingface
from pipeline.huggingface import verify, weights
from pipeline.huggingface.adapter import Adapter
from pipeline.huggingface.classes import adapter_of
from pipeline.model import build, checkpoint_folder
from tests.isolation import WITHOUT_OUR_CODE
from tests.model.small import ROOT, tiny

STRETCHED = params.RopeScaling(factor=8, low_freq_factor=1, high_freq_factor=4, original_block_size=32)
DENSE = {"n_expert": 0, "n_expert_per_token": 0}
STRUCTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("Llama", DENSE),
    "dense_qk_norm": ("Qwen3", DENSE | {"norm_qk": True, "tie_embeddings": False}),
    "moe": ("Mixtral", {}),
    "moe_untied_wide_heads": ("Mixtral", {"tie_embeddings": False, "head_size": 24, "n_query_groups": 1}),
    "moe_stretched_rope": ("Mixtral", {"rope_scaling": STRETCHED, "rope_base": 500_000}),
    "moe_one_expert_a_token": ("Mixtral", {"n_expert_per_token": 1}),
    "moe_every_expert": ("Mixtral", {"n_expert_per_token": 4, "n_query_groups": 4}),
    "qk_norm": ("Qwen3Moe", {"norm_qk": True}),
    "qk_norm_mixed": ("Qwen3Moe", {"norm_qk": True, "moe_every": 2, "norm_topk_prob": False}),
    "qk_norm_dense_first": ("Qwen3Moe", {"norm_qk": True, "first_k_dense_replace": 2, "rope_scaling": STRETCHED}),
    "mixed": ("Qwen2Moe", {"moe_every": 2}),
    "not_normalized": ("Qwen2Moe", {"norm_topk_prob": False, "tie_embeddings": False}),
    "shared": ("Qwen2Moe", {"n_shared_expert": 2, "head_size": 12}),
    "shared_mixed_stretched": ("Qwen2Moe", {"n_shared_expert": 1, "moe_every": 3, "rope_scaling": STRETCHED}),
    "sigmoid": ("Glm4Moe", {"router": "sigmoid"}),
    "sigmoid_shared": (
        "Glm4Moe",
        {"router": "sigmoid", "n_shared_expert": 2, "norm_qk": True, "tie_embeddings": False},
    ),
    "sigmoid_scaled": (
        "Glm4Moe",
        {"router": "sigmoid", "routed_scaling_factor": 2.5, "norm_topk_prob": False, "first_k_dense_replace": 1},
    ),
    "sigmoid_stretched": ("Glm4Moe", {"router": "sigmoid", "rope_scaling": STRETCHED, "head_size": 12}),
    "dense_baseline": ("Llama", {"dense_baseline": "active"}),
    "dense_baseline_total_qk_norm": ("Qwen3", {"dense_baseline": "total", "norm_qk": True}),
}
PRESETS = sorted(path.stem for path in (ROOT / "configs/model").glob("*.yaml"))


def trained(model: params.Model, vocab_size: int = 300) -> build.MoEGPT:
    """Weights far from their first values, router biases included."""
    gpt = build.build(model, vocab_size)
    verify._randomize(gpt)
    return gpt.eval()


def export(gpt: build.MoEGPT, tokenizer: Path, into: Path, dtype: str = "float32") -> dict[str, Any]:
    return huggingface.to_huggingface(gpt, tokenizer, into, dtype, 10**9)


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_structure_has_a_transformers_class_with_the_same_logits_and_comes_back_exactly(
    name: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    expected, changes = STRUCTURES[name]
    gpt = trained(tiny(**changes))
    report = export(gpt, tokenizer_folder, tmp_path / "hf")
    assert report["class"] == f"{expected}ForCausalLM"
    assert report["max_logit_difference"] <= 1e-4
    assert report["positions_equal"] >= 200 and report["greedy_tokens_equal"] >= 64

    # independent of the export's own check: plain transformers, its default settings
    ours_BT = torch.randint(300, (2, 64), generator=torch.Generator().manual_seed(1))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    assert type(theirs).__name__ == f"{expected}ForCausalLM"
    with torch.no_grad():
        difference_BT = (theirs(ours_BT).logits - gpt(ours_BT)[..., :300]).abs().amax(-1)
    assert (difference_BT <= 1e-4).float().mean() > 0.8  # the rest may hang on a near tie of a router
    assert difference_BT.median() <= 1e-5

    back = huggingface.from_huggingface(tmp_path / "hf", tmp_path / "litgpt")
    again = checkpoint_folder.load(tmp_path / "litgpt")
    assert adapter_of(back).name == report["class"]
    for key, weight in gpt.state_dict().items():
        rows = 300 if key in ("transformer.wte.weight", "lm_head.weight") else len(weight)
        assert torch.equal(again.state_dict()[key], weight[:rows]), key
    assert (tmp_path / "litgpt" / "tokenizer.json").is_file()


@st.composite
def structures(draw: st.DrawFn) -> params.Model:
    """Any model that the parameters allow."""
    n_expert = draw(st.integers(0, 4))
    n_layer = draw(st.integers(1, 5))
    changes = {
        "n_layer": n_layer,
        "n_head": 4,
        "n_query_groups": draw(st.sampled_from([1, 2, 4])),
        "head_size": draw(st.sampled_from([None, 4, 12])),
        "norm_qk": draw(st.booleans()),
        "tie_embeddings": draw(st.booleans()),
        "n_expert": n_expert,
        "n_expert_per_token": draw(st.integers(min(1, n_expert), n_expert)),
        "n_shared_expert": draw(st.integers(0, 2)),
        "moe_every": draw(st.integers(1, n_layer)),
        "first_k_dense_replace": draw(st.integers(0, n_layer - 1)),
        "router": draw(st.sampled_from(["softmax", "sigmoid"])),
        "norm_topk_prob": draw(st.booleans()),
    }
    try:
        return tiny(**changes)
    except ValueError:
        reject()


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.filter_too_much])
@given(structures())
def test_any_model_that_params_allow_has_a_place_for_every_weight_in_its_class(
    model: params.Model,
) -> None:
    state = build.build(model, 20).state_dict()
    written = weights.to_huggingface(state, model, 64)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(weights.transformers_config(model, 64))
    sizes = {name: weight.numel() for name, weight in theirs.state_dict().items()}
    if model.tie_embeddings:
        del sizes["lm_head.weight"]
    assert sum(weight.numel() for weight in written.values()) == sum(sizes.values())
    back = weights.from_huggingface(written, model, adapter_of(model))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], weight) for name, weight in state.items())


def _shrunk(preset: str) -> params.Model:
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        composed = OmegaConf.to_container(compose("config", overrides=[f"model={preset}"]).model, resolve=True)
    model = params.Model.model_validate(composed)
    small = verify._narrow(model).model_copy(update={"block_size": 64})
    assert adapter_of(small).name == adapter_of(model).name
    return small


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_verified_exportable_at_smaller_widths(preset: str) -> None:
    small = _shrunk(preset)
    assert adapter_of(small).name in verify.verify_exportable(small, 300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_the_logits_and_greedy_tokens_of_its_weights_rounded_to_any_dtype(
    preset: str, dtype: torch.dtype, tokenizer_folder: Path, tmp_path: Path
) -> None:
    gpt = trained(_shrunk(preset))
    report = export(gpt, tokenizer_folder, tmp_path / "hf", str(dtype).removeprefix("torch."))
    assert report["class"] == adapter_of(gpt.params).name and report["max_logit_difference"] <= 1e-4
    assert report["positions_equal"] >= 200 and report["greedy_tokens_equal"] >= 100 and report["greedy_tokens"] == 128

    # independent of the export's own check: another prompt, weights rounded by plain transformers
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=dtype).float().eval()
    idx_BT = torch.randint(300, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours_BTV = verify.rounded(gpt, dtype)(idx_BT)[..., :300]
        difference_BT = (theirs(idx_BT).logits - ours_BTV).abs().amax(-1)
    assert difference_BT.median() <= 1e-5 and (difference_BT <= 1e-4).float().mean() > 0.8


def test_a_large_architecture_is_verified_narrowed() -> None:
    wide = tiny(n_layer=12, n_embd=1024, n_head=16, n_expert=16, moe_intermediate_size=512, norm_qk=True)
    assert "narrowed" in verify.verify_exportable(wide, 50_000)


def test_verification_fails_for_a_structure_that_is_read_differently(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = Adapter.config

    def without_scaling(self: Adapter, model: params.Model, vocab_size: int) -> dict[str, Any]:
        return written(self, model.model_copy(update={"rope_scaling": None}), vocab_size)

    monkeypatch.setattr(Adapter, "config", without_scaling)
    with pytest.raises(RuntimeError, match="other logits"):
        verify.verify_exportable(tiny(rope_scaling=STRETCHED), 300)


def test_greedy_tokens_that_count_as_equal_are_those_that_the_model_itself_writes(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt = trained(tiny())
    assert (report := export(gpt, tokenizer_folder, tmp_path / "hf"))["greedy_tokens_equal"] == report["greedy_tokens"]
    prompt_BT = torch.randint(300, (4, 64), generator=torch.Generator().manual_seed(0))[:, :32]
    own_BT = prompt_BT
    with torch.no_grad():
        for _ in range(32):
            own_BT = torch.cat((own_BT, gpt(own_BT)[:, -1:, :300].argmax(-1)), 1)
    theirs = verify.load(tmp_path / "hf")
    theirs.generation_config.eos_token_id = None
    plain = {"max_new_tokens": 32, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(theirs.generate(prompt_BT, attention_mask=torch.ones(4, 32).long(), **plain), own_BT)

    # a model whose last ten tokens are others
    astray_BT = torch.cat((own_BT[:, :54], (own_BT[:, 54:] + 1) % 300), 1)
    monkeypatch.setattr(type(theirs), "generate", lambda *_, **__: astray_BT)
    with pytest.raises(RuntimeError, match="continues a prompt with other tokens"):
        verify.compare(gpt, tmp_path / "hf", 300)
    logits = verify._logits

    def tied_there(model: Any, idx_BT: torch.Tensor, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        return logits(model, idx_BT, vocab_size)[0], (torch.arange(idx_BT.size(1)) >= 53).expand(idx_BT.shape)

    monkeypatch.setattr(verify, "_logits", tied_there)
    parity = verify.compare(gpt, tmp_path / "hf", 300)
    assert (parity.generated_equal, parity.generated) == (4 * 22, 4 * 32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_rounded_and_nothing_else(dtype: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    gpt = trained(tiny(router="sigmoid", n_shared_expert=1))
    report = export(gpt, tokenizer_folder, tmp_path / "hf", dtype)
    assert report["max_logit_difference"] <= 1e-4
    assert json.loads((tmp_path / "hf/config.json").read_text())["dtype"] == dtype
    with safe_open(tmp_path / "hf/model.safetensors", "pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert kinds.pop("model.layers.0.mlp.gate.e_score_correction_bias") == torch.float32
    assert {str(kind) for name, kind in kinds.items() if "bias" not in name} == {f"torch.{dtype}"}


def test_a_difference_of_one_weight_is_found_and_nothing_is_written(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt = trained(tiny())

    plain = weights.to_huggingface

    def damaged(*args: Any) -> dict[str, torch.Tensor]:
        state = plain(*args)
        change = torch.zeros_like(state["model.layers.1.self_attn.q_proj.weight"])
        change[3, 3] = 0.1
        return state | {
            "model.layers.1.self_attn.q_proj.weight": change + state["model.layers.1.self_attn.q_proj.weight"]
        }

    monkeypatch.setattr(weights, "to_huggingface", damaged)
    with pytest.raises(RuntimeError, match="other logits"):
        export(gpt, tokenizer_folder, tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


def test_shards_keep_to_their_size_and_load(tokenizer_folder: Path, tmp_path: Path) -> None:
    gpt = trained(tiny(tie_embeddings=False))
    huggingface.to_huggingface(gpt, tokenizer_folder, tmp_path / "hf", "float32", 60_000)
    shards = sorted((tmp_path / "hf").glob("*.safetensors"))
    assert len(shards) > 3
    assert all(shard.stat().st_size < 60_000 + 8_000 for shard in shards)  # and a header
    index = json.loads((tmp_path / "hf/model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_mode_that_the_umask_gives(
    umask: int, mode: int, tokenizer_folder: Path, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        huggingface.to_huggingface(trained(tiny()), tokenizer_folder, tmp_path / "hf", "float32", 60_000)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "hf").iterdir()} == {mode}


def test_the_same_model_gives_the_same_bytes(tokenizer_folder: Path, tmp_path: Path) -> None:
    gpt = trained(tiny())
    for name in "ab":
        export(gpt, tokenizer_folder, tmp_path / name)
    assert hashing.content_hash(tmp_path / "a") == hashing.content_hash(tmp_path / "b")


def test_padding_rows_are_left_out_so_that_no_sampler_draws_them(tokenizer_folder: Path, tmp_path: Path) -> None:
    gpt = trained(tiny(padding_multiple=128))
    assert gpt.config.padded_vocab_size == 384
    export(gpt, tokenizer_folder, tmp_path / "hf")
    assert json.loads((tmp_path / "hf/config.json").read_text())["vocab_size"] == 300


@pytest.mark.parametrize("changes", [DENSE, {}, {"tie_embeddings": False, "n_shared_expert": 1}])
def test_parameters_are_counted_as_they_stand_in_the_file(
    changes: dict[str, Any], tokenizer_folder: Path, tmp_path: Path
) -> None:
    gpt = trained(tiny(padding_multiple=128, **changes))
    report = export(gpt, tokenizer_folder, tmp_path / "hf")
    weights = load_file(tmp_path / "hf/model.safetensors")
    added = [name for name in weights if name.endswith(("shared_expert_gate.weight", ".bias"))]  # zeros of the class
    assert report["parameters"] == sum(weights[name].numel() for name in weights if name not in added)
    idle = 2 * 3 * 3 * 32 * 32 if gpt.params.n_expert else 0  # 2 of 4 experts, 3 layers, 3 matrices
    assert report["active_parameters"] == report["parameters"] - idle


def test_generation_settings_and_tokenizer_are_those_of_the_tokenizer(tokenizer_folder: Path, tmp_path: Path) -> None:
    export(trained(tiny()), tokenizer_folder, tmp_path / "hf")
    words = AutoTokenizer.from_pretrained(tmp_path / "hf")
    settings = json.loads((tmp_path / "hf/generation_config.json").read_text())
    assert settings["eos_token_id"] == words.eos_token_id
    assert words.model_max_length == 64
    assert set(words(["One", "Once upon"])) == {"input_ids", "attention_mask"}
    text = "Once upon a time, Mia said: “Où est 12 €?”\n"
    assert words.decode(words(text)["input_ids"]) == text


def test_a_chat_template_travels_with_the_tokenizer(tokenizer_folder: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    for file in tokenizer_folder.iterdir():
        (tuned / file.name).write_bytes(file.read_bytes())
    (tuned / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    export(trained(tiny()), tuned, tmp_path / "hf")
    words = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert words.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "[hi]"


def test_plain_transformers_needs_none_of_our_code(tokenizer_folder: Path, tmp_path: Path) -> None:
    export(trained(tiny(norm_qk=True, moe_every=2)), tokenizer_folder, tmp_path / "hf")
    program = WITHOUT_OUR_CODE + (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "words, model = AutoTokenizer.from_pretrained('hf'), AutoModelForCausalLM.from_pretrained('hf')\n"
        "prompt = words('Once upon a time', return_tensors='pt', return_token_type_ids=False)\n"
        "print(repr(words.decode(model.generate(**prompt, max_new_tokens=5)[0])))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("'Once upon a time")


@pytest.mark.parametrize("changes", [DENSE, DENSE | {"norm_qk": True}, {}, {"norm_qk": True}], ids=str)
def test_litgpt_converts_the_checkpoint_to_the_weights_of_the_export(
    changes: dict[str, Any], tokenizer_folder: Path, tmp_path: Path
) -> None:
    gpt = trained(tiny(tie_embeddings=False, **changes))
    checkpoint_folder.save(gpt, tmp_path / "litgpt", tokenizer_folder)
    convert_lit_checkpoint(tmp_path / "litgpt", tmp_path / "converted")
    converted = torch.load(tmp_path / "converted" / "model.pth")
    exported = weights.to_huggingface(gpt.state_dict(), gpt.params, gpt.config.padded_vocab_size)
    assert converted.keys() == exported.keys()
    assert all(torch.equal(converted[name], exported[name]) for name in exported)
    assert type(model_name_to_prompt_style(gpt.config.name)) is Default  # `litgpt generate` adds nothing to a prompt


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"router": "sigmoid", "moe_every": 2}, "moe_every: 2"),
        ({"norm_qk": True, "n_shared_expert": 1}, "n_shared_expert: 1"),
        ({"routed_scaling_factor": 2.0}, "routed_scaling_factor: 2.0"),
        ({"router": "sigmoid", "n_expert": 1, "n_expert_per_token": 1}, "n_expert"),
    ],
)
def test_a_model_without_a_transformers_class_is_refused_with_its_params(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        tiny(**changes)


def test_what_no_class_computes_names_the_nearest_that_would() -> None:
    with pytest.raises(ValueError, match=r"norm_qk: true, n_shared_expert: 1, router: softmax: no transformers class"):
        tiny(norm_qk=True, n_shared_expert=1)
    take = (
        r"take norm_qk: false \(Qwen2MoeForCausalLM\) or n_shared_expert: 0 \(Qwen3MoeForCausalLM\) "
        r"or router: sigmoid \(Glm4MoeForCausalLM\)"
    )
    with pytest.raises(ValueError, match=take):
        tiny(norm_qk=True, n_shared_expert=1)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(tokenizer_folder: Path, tmp_path: Path) -> Path:
    export(trained(tiny(n_shared_expert=1)), tokenizer_folder, tmp_path / "hf")
    return tmp_path / "hf"


def _set(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"use_sliding_window": True, "sliding_window": 16}, "sliding_window = 16"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope_type = yarn"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1.5}}, "rope_theta = 1.5"),
        ({"architectures": ["GPT2LMHeadModel"]}, "a GPT2LMHeadModel; allowed: LlamaForCausalLM"),
        ({"architectures": None}, "no configuration of a transformers model"),
        ({"mlp_only_layers": [0, 2]}, "missing"),
        ({"num_experts": 3}, "not known"),
        ({"num_hidden_layers": 4}, "missing"),
        ({"hidden_size": 64, "head_dim": 8}, "has shape"),
        ({"shared_expert_intermediate_size": 33}, "shared_expert_intermediate_size = 33"),
        ({"num_attention_heads": 3}, "config.json"),
        ({"num_attention_heads": 0, "head_dim": None}, "config.json"),
        ({"moe_intermediate_size": 0}, "config.json"),
        ({"mlp_only_layers": 1}, "config.json"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "config.json"),
        ({"rope_parameters": 7}, "config.json"),
        ({"hidden_size": "wide"}, "config.json"),
        ({"architectures": [["Qwen2MoeForCausalLM"]]}, r"a \['Qwen2MoeForCausalLM'\]; allowed"),
    ],
)
def test_an_import_of_what_is_not_ours_says_which_setting(exported: Path, changed: dict[str, Any], words: str) -> None:
    _set(exported, **changed)
    with pytest.raises(UserError, match=words):
        huggingface.from_huggingface(exported, exported.parent / "into")
    assert not (exported.parent / "into").exists()


@pytest.mark.parametrize("name", ["layers.0.mlp.shared_expert_gate.weight", "layers.1.self_attn.k_proj.bias"])
def test_an_import_refuses_a_gate_or_a_bias_that_is_not_zero(exported: Path, name: str) -> None:
    weights = load_file(exported / "model.safetensors")
    weights[f"model.{name}"] += 0.5
    save_file(weights, exported / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"{name} is not zero"):
        huggingface.from_huggingface(exported, exported.parent / "into")


def test_exports_without_zero_filled_weights_are_read_too(tokenizer_folder: Path, tmp_path: Path) -> None:
    """Qwen2-MoE without biases, and with a shared expert of width 0."""
    gpt = trained(tiny(moe_every=2))
    export(gpt, tokenizer_folder, tmp_path / "hf")
    _set(tmp_path / "hf", qkv_bias=False, shared_expert_intermediate_size=0)
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    plain = {name: weight for name, weight in weights.items() if not name.endswith(".bias")}
    for name in [name for name in plain if ".shared_expert." in name]:
        plain[name] = torch.empty((32, 0) if "down" in name else (0, 32))
    save_file(plain, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    assert huggingface.from_huggingface(tmp_path / "hf", tmp_path / "litgpt").n_shared_expert == 0
    state = checkpoint_folder.load(tmp_path / "litgpt").state_dict()
    assert torch.equal(state["transformer.h.1.mlp.gate.weight"], gpt.state_dict()["transformer.h.1.mlp.gate.weight"])


def test_an_import_names_damage(exported: Path) -> None:
    whole = (exported / "model.safetensors").read_bytes()
    (exported / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        huggingface.from_huggingface(exported, exported.parent / "into")
    (exported / "model.safetensors").unlink()
    with pytest.raises(UserError, match="only safetensors"):
        huggingface.from_huggingface(exported, exported.parent / "into")
    with pytest.raises(UserError, match=r"no config\.json"):
        huggingface.from_huggingface(exported.parent, exported.parent / "into")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "[" * 100_000, '{"architectures": []}', '{"architectures": 3}']
)
def test_an_import_names_a_configuration_that_is_none(exported: Path, content: str) -> None:
    (exported / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json is no configuration of a transformers model"):
        huggingface.from_huggingface(exported, exported.parent / "into")


def test_a_tokenizer_that_transformers_cannot_read_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_folder, odd)
    settings = json.loads((odd / "tokenizer_config.json").read_text())
    (odd / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": ["odd"]}))
    with pytest.raises(UserError, match="AutoTokenizer cannot read it"):
        export(trained(tiny()), odd, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("index", ["[", "[]", "{}", '{"weight_map": null}', '{"weight_map": {"a": 3}}'])
def test_an_import_names_an_index_that_is_none(exported: Path, index: str) -> None:
    (exported / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match="damaged"):
        huggingface.from_huggingface(exported, exported.parent / "into")


@pytest.mark.parametrize("into", [".", "work", "work/..", "work/letter.txt", ""])
def test_an_import_destroys_nothing_that_is_no_checkpoint(
    exported: Path, into: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exported.parent)
    Path("work").mkdir()
    Path("work/letter.txt").write_text("dear")
    with pytest.raises(UserError, match="name a new one"):
        huggingface.from_huggingface(exported, Path(into))
    assert Path("work/letter.txt").read_text() == "dear"


def test_an_import_replaces_a_checkpoint_and_fills_an_empty_folder(exported: Path) -> None:
    into = exported.parent / "into"
    into.mkdir()
    for _ in range(2):
        huggingface.from_huggingface(exported, into)
    assert checkpoint_folder.load(into).params.n_shared_expert == 1


def test_an_import_reads_what_transformers_itself_writes(tmp_path: Path) -> None:
    config = weights.transformers_config(tiny(norm_qk=True, moe_every=2), 300)
    theirs = AutoModelForCausalLM.from_config(config)
    theirs.save_pretrained(tmp_path / "hf")
    model = huggingface.from_huggingface(tmp_path / "hf", tmp_path / "litgpt")
    assert (model.moe_every, model.first_k_dense_replace, model.norm_qk) == (2, 0, True)
    idx_BT = torch.arange(64)[None]
    with torch.no_grad():
        ours = checkpoint_folder.load(tmp_path / "litgpt").eval()
        assert (ours(idx_BT) - theirs.eval()(idx_BT).logits).abs().max() < 1e-4


def test_a_relative_of_a_known_class_is_refused(tmp_path: Path) -> None:
    MistralConfig(architectures=["MistralForCausalLM"]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a MistralForCausalLM; allowed"):
        huggingface.from_huggingface(tmp_path, tmp_path / "into")


def test_a_tokenizer_that_is_absent_or_too_large_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json is no tokenizer"):
        export(trained(tiny()), tmp_path, tmp_path / "hf")
    with pytest.raises(UserError, match="300 tokens, but the model has 64"):
        export(trained(tiny(), 64), tokenizer_folder, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
