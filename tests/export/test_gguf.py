"""GGUF files read back: by the gguf package tensor by tensor, and by transformers' own loader as a second reader."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import gguf as format
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor, load_gguf_checkpoint

from pipeline import params
from pipeline.errors import UserError
from pipeline.export import gguf
from pipeline.huggingface import verify, weights
from pipeline.huggingface.classes import gguf_architecture
from pipeline.model import build
from tests.model.small import ROOT, tiny

ABOUT: dict[str, Any] = {"name": "stories", "license": "apache-2.0", "tags": ["text-generation"]}
STRETCHED = params.RopeScaling(factor=8, low_freq_factor=1, high_freq_factor=4, original_block_size=32)
STRUCTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("llama", {"n_expert": 0, "n_expert_per_token": 0, "tie_embeddings": False}),
    "dense_qk_norm": ("qwen3", {"n_expert": 0, "n_expert_per_token": 0, "norm_qk": True}),
    "moe": ("llama", {"rope_scaling": STRETCHED}),
    "qk_norm": ("qwen3moe", {"norm_qk": True}),
    "shared": ("qwen2moe", {"n_shared_expert": 1, "norm_topk_prob": False}),
    "not_normalized": ("qwen2moe", {"norm_topk_prob": False}),
    "sigmoid": ("glm4moe", {"router": "sigmoid"}),
    "sigmoid_qk_norm_scaled": (
        "glm4moe",
        {"router": "sigmoid", "norm_qk": True, "n_shared_expert": 2, "routed_scaling_factor": 2.5},
    ),
    "sigmoid_dense_first": (
        "glm4moe",
        {"router": "sigmoid", "first_k_dense_replace": 1, "norm_topk_prob": False, "tie_embeddings": False},
    ),
}


def trained(model: params.Model) -> build.MoEGPT:
    gpt = build.build(model, 300)
    verify._randomize(gpt)
    return gpt.eval()


def read(path: Path) -> tuple[dict[str, np.ndarray], format.GGUFReader]:
    reader = format.GGUFReader(path)
    return {t.name: format.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}, reader


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize(("kind", "error"), [("f32", 0.0), ("f16", 2**-11), ("q8_0", 1 / 254 + 2**-11)])
def test_every_tensor_reads_back(name: str, kind: str, error: float, tokenizer_folder: Path, tmp_path: Path) -> None:
    architecture, changes = STRUCTURES[name]
    gpt = trained(tiny(**changes))
    gguf.write(gpt, tokenizer_folder, tmp_path / "model.gguf", kind, ABOUT)
    found, reader = read(tmp_path / "model.gguf")
    assert reader.fields["general.architecture"].contents() == architecture
    expected = {key: value.detach() for key, value in gguf.tensors(gpt, 300)}
    assert found.keys() == expected.keys()
    for key, weight in expected.items():
        exact = weight.dim() == 1 or key.endswith("ffn_gate_inp.weight")
        # f16 rounds by a share of the value; q8_0 by half a step of 1/127 of the largest in its block, and the step
        scale = weight.float().abs() if kind == "f16" else weight.float().abs().max()
        bound = torch.zeros(()) if exact else error * scale + (0.001 * error * scale) + (1e-7 if error else 0)
        assert (torch.tensor(found[key]).view(weight.shape) - weight.float()).abs().le(bound).all(), key


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("value", "blk.1.attn_k.weight reads back with other values"),
        ("swapped", "reads back with other values"),
        ("lost", "blk.0.ffn_norm.weight was not written"),
        ("shape", "token_embd.weight has shape"),
    ],
)
def test_a_file_with_other_weights_than_the_models_never_takes_its_place(
    kind: str, fault: str, words: str, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = format.GGUFWriter.add_tensor

    def faulty(writer: format.GGUFWriter, name: str, tensor: np.ndarray, **options: Any) -> None:
        if fault == "value" and name == "blk.1.attn_k.weight":
            weight = format.quants.dequantize(tensor, options["raw_dtype"])
            weight[3, 4] += 0.02
            tensor = format.quants.quantize(weight, options["raw_dtype"])
        elif fault == "swapped" and name in ("blk.0.ffn_up_exps.weight", "blk.0.ffn_gate_exps.weight"):
            name = {"u": "blk.0.ffn_gate_exps.weight", "g": "blk.0.ffn_up_exps.weight"}[name[len("blk.0.ffn_")]]
        elif fault == "lost" and name == "blk.0.ffn_norm.weight":
            return
        elif fault == "shape" and name == "token_embd.weight":
            tensor = tensor[:-1]
        add(writer, name, tensor, **options)

    monkeypatch.setattr(format.GGUFWriter, "add_tensor", faulty)
    with pytest.raises(RuntimeError, match=words):
        gguf.write(trained(tiny()), tokenizer_folder, tmp_path / "model.gguf", kind, ABOUT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_what_the_kinds_round_is_let_pass_at_any_size_of_weights(
    kind: str, scale: float, tokenizer_folder: Path, tmp_path: Path
) -> None:
    gpt = trained(tiny())
    with torch.no_grad():
        for weight in gpt.parameters():
            weight.mul_(scale)
    gguf.write(gpt, tokenizer_folder, tmp_path / "model.gguf", kind, ABOUT)


@pytest.mark.parametrize("name", STRUCTURES)
def test_tensors_are_the_weights_in_the_order_that_the_architecture_wants(name: str) -> None:
    gpt = trained(tiny(**STRUCTURES[name][1]))
    state, model = gpt.state_dict(), gpt.params
    found = dict(gguf.tensors(gpt, 300))
    q, k, v = state["transformer.h.1.attn.qkv.weight"].split([32, 16, 16])
    if gguf_architecture(model) == "llama":  # by hand: row 2i is the i-th of the first half, 2i + 1 of the second
        rows = [head * 8 + half * 4 + i for head in range(4) for i in range(4) for half in range(2)]
        q, k = q[rows], k[rows[:16]]
    assert torch.equal(found["blk.1.attn_q.weight"], q)
    assert torch.equal(found["blk.1.attn_k.weight"], k)
    assert torch.equal(found["blk.1.attn_v.weight"], v)
    for expert in range(model.n_expert):
        down = state[f"transformer.h.2.mlp.experts.{expert}.proj.weight"]
        assert torch.equal(found["blk.2.ffn_down_exps.weight"][expert], down)


@pytest.mark.parametrize("name", ["dense", "dense_qk_norm", "qk_norm", "shared"])
def test_transformers_reads_the_file_and_gives_the_same_logits(
    name: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    gpt = trained(tiny(**STRUCTURES[name][1]))
    gguf.write(gpt, tokenizer_folder, tmp_path / "model.gguf", "f32", ABOUT)
    config = weights.transformers_config(gpt.params, 300)
    theirs = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    read = load_gguf_checkpoint(str(tmp_path / "model.gguf"), return_tensors=True, model_to_load=theirs)
    missing, unexpected = theirs.load_state_dict(read["tensors"], strict=False)
    assert not unexpected and missing in ([], ["lm_head.weight"])
    theirs.tie_weights()
    idx_BT = torch.randint(300, (1, 64), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        difference_T = (theirs(idx_BT).logits - gpt(idx_BT)[..., :300]).abs().amax(-1)[0]
    assert difference_T.median() < 1e-5 and (difference_T < 1e-4).float().mean() > 0.8


def test_the_mixtral_form_read_back_into_the_transformers_class_gives_the_same_logits(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    """transformers' own loader takes no experts in architecture llama; its way to put rows back is used by hand."""
    gpt = trained(tiny(**STRUCTURES["moe"][1]))
    gguf.write(gpt, tokenizer_folder, tmp_path / "model.gguf", "f32", ABOUT)
    found = {name: torch.tensor(array) for name, array in read(tmp_path / "model.gguf")[0].items()}
    names = {"embed_tokens": "token_embd", "norm": "output_norm"}
    state = {f"model.{theirs}.weight": found[f"{name}.weight"] for theirs, name in names.items()}
    put_back = LlamaTensorProcessor()._reverse_permute_weights
    for layer in range(gpt.params.n_layer):
        theirs, block = f"model.layers.{layer}", f"blk.{layer}"
        state[f"{theirs}.input_layernorm.weight"] = found[f"{block}.attn_norm.weight"]
        state[f"{theirs}.post_attention_layernorm.weight"] = found[f"{block}.ffn_norm.weight"]
        for part, heads in (("q", gpt.params.n_head), ("k", gpt.params.n_query_groups)):
            state[f"{theirs}.self_attn.{part}_proj.weight"] = put_back(
                found[f"{block}.attn_{part}.weight"], heads, heads
            ).contiguous()
        state[f"{theirs}.self_attn.v_proj.weight"] = found[f"{block}.attn_v.weight"]
        state[f"{theirs}.self_attn.o_proj.weight"] = found[f"{block}.attn_output.weight"]
        state[f"{theirs}.block_sparse_moe.gate.weight"] = found[f"{block}.ffn_gate_inp.weight"]
        for part, name in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
            for expert, weight in enumerate(found[f"{block}.ffn_{part}_exps.weight"]):
                state[f"{theirs}.block_sparse_moe.experts.{expert}.{name}.weight"] = weight.clone()
    weights.transformers_config(gpt.params, 300).save_pretrained(tmp_path / "hf")
    save_file(state, tmp_path / "hf/model.safetensors", {"format": "pt"})
    idx_BT = torch.randint(300, (1, 64), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        theirs_BTV = verify.load(tmp_path / "hf")(idx_BT).logits
        difference_T = (theirs_BTV - gpt(idx_BT)[..., :300]).abs().amax(-1)[0]
    assert difference_T.median() < 1e-5 and (difference_T < 1e-4).float().mean() > 0.8


@settings(deadline=None, max_examples=25)
@given(heads=st.integers(1, 6), pairs=st.integers(1, 8), columns=st.integers(1, 5))
def test_rows_that_rotate_together_become_neighbours_and_can_be_put_back(heads: int, pairs: int, columns: int) -> None:
    weight = torch.arange(heads * 2 * pairs * columns).view(heads * 2 * pairs, columns)
    moved = gguf.interleave(weight, heads).view(heads, pairs, 2, columns)
    halves = weight.view(heads, 2, pairs, columns)
    assert torch.equal(moved[:, :, 0], halves[:, 0]) and torch.equal(moved[:, :, 1], halves[:, 1])
    assert torch.equal(moved.transpose(1, 2).reshape(weight.shape), weight)


def test_rotary_factors_are_what_litgpt_divides_its_frequencies_by() -> None:
    model = tiny(rope_scaling=STRETCHED, head_size=32)
    gpt = build.build(model, 300)
    plain = build.build(tiny(head_size=32), 300)
    angle_H = torch.atan2(gpt.sin[1], gpt.cos[1])[:16]  # at position 1 the angle is the frequency
    plain_H = torch.atan2(plain.sin[1], plain.cos[1])[:16]
    assert torch.allclose(plain_H / angle_H, gguf.rope_factors(model).float(), rtol=1e-4)


def test_the_tokenizer_is_in_the_file(tokenizer_folder: Path, tmp_path: Path) -> None:
    gguf.write(trained(tiny()), tokenizer_folder, tmp_path / "model.gguf", "f16", ABOUT)
    fields = format.GGUFReader(tmp_path / "model.gguf").fields
    words = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert [words.token_to_id(token) for token in tokens] == list(range(300))
    end = fields["tokenizer.ggml.eos_token_id"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert tokens[end] == "<|endoftext|>" and kinds[end] == format.TokenType.CONTROL
    pad = fields["tokenizer.ggml.padding_token_id"].contents()
    assert tokens[pad] == "<|pad|>" and kinds[pad] == format.TokenType.CONTROL
    assert kinds.count(int(format.TokenType.NORMAL)) == 298
    described = json.loads(words.to_str())["model"]["merges"]
    assert [merge.split(" ") for merge in fields["tokenizer.ggml.merges"].contents()] == described
    assert fields["tokenizer.ggml.model"].contents() == "gpt2"
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False


def test_the_file_says_its_name_licence_size_and_tags(tokenizer_folder: Path, tmp_path: Path) -> None:
    gguf.write(trained(tiny()), tokenizer_folder, tmp_path / "model.gguf", "f16", ABOUT)
    fields = format.GGUFReader(tmp_path / "model.gguf").fields
    said = {key: fields[f"general.{key}"].contents() for key in ("name", "license", "tags", "size_label")}
    assert said == ABOUT | {"size_label": "4x29K"}


def test_text_that_llama_cpp_splits_otherwise_is_named(
    tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))
    described["model"]["vocab"] |= {"To": 300, "Tom": 301}
    described["model"]["merges"] += [["T", "o"], ["To", "m"]]
    gguf.nearest_cut(Tokenizer.from_str(json.dumps(described)))
    assert "gives other tokens for \"'Tom is here" in capsys.readouterr().err


def test_a_chat_template_is_in_the_file(tokenizer_folder: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    for file in tokenizer_folder.iterdir():
        (tuned / file.name).write_bytes(file.read_bytes())
    (tuned / "chat_template.jinja").write_text("[{{ messages[0].content }}]")
    gguf.write(trained(tiny()), tuned, tmp_path / "model.gguf", "f16", ABOUT)
    fields = format.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == "[{{ messages[0].content }}]"


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2", "smollm"])
def test_a_known_way_to_cut_words_is_recognized(
    name: str, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = gguf.cut_as(Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json")), gguf.CUTS[name])
    found = gguf.nearest_cut(words)
    again = gguf.cut_as(words, gguf.CUTS[found])
    text = "He had 12345 apples, didn't he?\n\n  Yes."
    assert again.encode(text).ids == words.encode(text).ids
    assert capsys.readouterr().err == ""


def test_the_same_model_gives_the_same_bytes(tokenizer_folder: Path, tmp_path: Path) -> None:
    gpt = trained(tiny())
    for name in ("a.gguf", "b.gguf"):
        gguf.write(gpt, tokenizer_folder, tmp_path / name, "q8_0", ABOUT)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"router": "sigmoid", "rope_scaling": STRETCHED}, "rope_scaling"),
        ({"norm_qk": True, "rope_scaling": STRETCHED}, "rope_scaling"),
        ({"norm_qk": True, "moe_every": 2}, "moe_every"),
        ({"norm_qk": True, "norm_topk_prob": False}, "norm_topk_prob"),
        ({"n_shared_expert": 1}, "norm_topk_prob"),
        ({"norm_topk_prob": False, "moe_every": 2}, "moe_every: 2"),
        ({"n_shared_expert": 1, "norm_topk_prob": False, "head_size": 12}, "head_size"),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused_with_the_params(
    changes: dict[str, Any], words: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    model = tiny(**changes)
    with pytest.raises(UserError, match=words):
        gguf.write(trained(model), tokenizer_folder, tmp_path / "model.gguf", "f16", ABOUT)
    whole = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    whole["model"] = model.model_dump() | {"block_size": whole["train"]["block_size"]}
    params.validate(whole)
    with pytest.raises(UserError, match=f"model.{words}"):
        params.validate(whole | {"export": whole["export"] | {"gguf": ["f16"]}})


def test_a_tokenizer_without_merges_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    described = json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))
    described["model"]["merges"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(UserError, match="byte-level BPE"):
        gguf.write(trained(tiny()), tmp_path, tmp_path / "model.gguf", "f16", ABOUT)
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize("name", STRUCTURES)
def test_llama_cpp_computes_the_same_and_cuts_text_the_same(name: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (uv pip install xllamacpp)")
    gpt = trained(tiny(**STRUCTURES[name][1]))
    gguf.write(gpt, tokenizer_folder, tmp_path / "model.gguf", "f32", ABOUT)
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(tmp_path / "model.gguf"), 64, 1
    settings.warmup, settings.cpuparams.n_threads, settings.verbosity = False, 1, -1
    server = xllamacpp.Server(settings)
    words = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    prompt = words.encode('Once upon a time, Mia said: "We can\'t find 12 balls!"').ids
    with torch.no_grad():
        logits_TV = gpt(torch.tensor([prompt]))[0, :, :300]
    # up to where the likeliest token is a whole character: the server keeps back half ones, and their logprobs
    whole = [i for i, token in enumerate(logits_TV.argmax(-1).tolist()) if token and words.decode([token]).isascii()]
    prompt, expected_V = prompt[: whole[-1] + 1], logits_TV[whole[-1]].log_softmax(-1)
    answer = server.handle_completions({"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 5})
    found = {t["id"]: t["logprob"] for t in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
    assert max(found, key=lambda token: found[token]) == int(expected_V.argmax())
    assert all(abs(expected_V[token].item() - logprob) < 0.02 for token, logprob in found.items())  # f16 KV cache
    asked = json.dumps({"content": words.decode(prompt), "add_special": False}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{server.listening_address}/tokenize", asked)) as answer:
        assert json.load(answer)["tokens"] == prompt
