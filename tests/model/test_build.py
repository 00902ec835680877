"""Models from params against litgpt's own, documents apart, counting, checkpoint folders sound and damaged."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from litgpt.config import Config
from litgpt.model import GPT
from torch import Tensor

from pipeline import params
from pipeline.errors import UserError
from pipeline.model import build, checkpoint_folder
from pipeline.model.build import MoEGPT, documents, may_attend
from pipeline.model.moe import MoE
from tests.model.small import tiny

VOCAB = 50
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_block_size": 32}
LITGPT_HAS: dict[str, dict[str, Any]] = {  # structures that litgpt's config can express
    "softmax": {},
    "sigmoid": {"router": "sigmoid", "n_shared_expert": 1, "routed_scaling_factor": 2.0},
    "first_dense": {"first_k_dense_replace": 1},
    "dense": {"n_expert": 0, "n_query_groups": 1},
    "qk_norm_wide_heads": {"norm_qk": True, "head_size": 16, "n_query_groups": 4, "tie_embeddings": False},
    "llama3_rope": {"rope_scaling": SCALING, "rope_base": 500},
}
ONLY_OURS: dict[str, dict[str, Any]] = {
    "every_second": {"moe_every": 2},
    "unnormalized": {"norm_topk_prob": False},
}


def _model(**changes: Any) -> MoEGPT:
    gpt = build.build(tiny(**changes), VOCAB, seed=1)
    with torch.no_grad():  # what adds to the residual is larger than at the start, so that differences show
        for name, parameter in gpt.named_parameters():
            parameter.mul_(10.0 if name.endswith(("proj.weight", "down_ECI")) else 1.0)
    return gpt


def _tokens(*shape: int) -> Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(0))


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", LITGPT_HAS.values(), ids=LITGPT_HAS)
def test_litgpt_opens_the_checkpoint_and_computes_the_same(changes: dict[str, Any], tmp_path: Path) -> None:
    gpt, idx = _model(**changes), _tokens(2, 20)
    checkpoint_folder.save(gpt, tmp_path / "model")
    theirs = GPT(Config.from_checkpoint(tmp_path / "model"))
    theirs.load_state_dict(torch.load(tmp_path / "model/lit_model.pth", weights_only=True))
    torch.testing.assert_close(gpt(idx), theirs(idx), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", (LITGPT_HAS | ONLY_OURS).values(), ids=LITGPT_HAS | ONLY_OURS)
def test_the_cache_gives_what_the_whole_sequence_gives(changes: dict[str, Any]) -> None:
    gpt, idx = _model(**changes).eval(), _tokens(2, 12)
    whole = gpt(idx)
    torch.testing.assert_close(gpt.lm_head(gpt.hidden(idx)), whole)
    gpt.set_kv_cache(batch_size=2)
    parts = [gpt(idx[:, :7], input_pos=torch.arange(7))]
    parts += [gpt(idx[:, i : i + 1], input_pos=torch.tensor([i])) for i in range(7, 12)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"norm_qk": True, "n_query_groups": 1, "head_size": 12}])
def test_gradients_are_those_of_litgpt(changes: dict[str, Any]) -> None:
    ours, idx = _model(**changes), _tokens(2, 20)
    theirs = GPT(ours.config)
    theirs.load_state_dict(ours.state_dict())
    theirs.lm_head.weight = theirs.transformer.wte.weight
    for gpt in (ours, theirs):
        torch.nn.functional.cross_entropy(gpt(idx)[:, :-1].flatten(0, 1), idx[:, 1:].flatten()).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if "mlp" not in name:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-5, msg=name)


def test_the_model_compiles_as_one_graph() -> None:
    gpt, idx = _model(moe_every=2), _tokens(2, 12)
    torch._dynamo.reset()
    compiled = torch.compile(gpt.hidden, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(idx), gpt.hidden(idx), rtol=1e-5, atol=1e-5)
    compiled(idx).sum().backward()


def test_experts_stand_in_the_layers_that_params_say() -> None:
    gpt = build.on_meta(tiny(n_layer=6, moe_every=2, first_k_dense_replace=2), VOCAB)
    assert [isinstance(block.mlp, MoE) for block in gpt.transformer.h] == [False, False, False, True, False, True]


@settings(deadline=None, max_examples=15)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_a_document_does_not_see_its_neighbours(lengths: list[int]) -> None:
    """Documents side by side under the mask are documents each alone."""
    gpt, end = _model(moe_every=2), VOCAB - 1
    texts = [torch.randint(0, end, (length,)) for length in lengths]
    texts = [torch.cat([text, torch.tensor([end])]) for text in texts]
    packed = gpt.hidden(torch.cat(texts)[None], *documents(torch.cat(texts)[None], end))
    alone = torch.cat([gpt.hidden(text[None]) for text in texts], 1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)


def test_positions_and_mask_of_documents() -> None:
    position_BT, begin_BT = documents(torch.tensor([[5, 9, 9, 4, 4], [1, 2, 3, 4, 9]]), eos_id=9)
    assert position_BT.tolist() == [[0, 1, 0, 0, 1], [0, 1, 2, 3, 4]]
    assert begin_BT.tolist() == [[0, 0, 2, 3, 3], [0, 0, 0, 0, 0]]
    mask = may_attend(begin_BT)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1],
    ]  # fmt: skip
    assert mask[1, 0].equal(torch.ones(5, 5, dtype=torch.bool).tril())


def test_too_long_a_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="max_seq_length = 64"):
        build.build(tiny(), VOCAB).hidden(_tokens(1, 65))


# --- fresh weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_fresh_weights_follow_the_seed_and_have_the_stated_spread(tied: bool) -> None:
    model = tiny(n_embd=128, n_shared_expert=1, tie_embeddings=tied)
    one, again, other = (dict(build.build(model, VOCAB, seed=s).named_parameters()) for s in (1, 1, 2))
    for name, weight in one.items():
        assert weight.equal(again[name])
        if "norm" in name or "ln_f" in name:
            assert weight.eq(1).all()
            continue
        assert not weight.equal(other[name])
        residual = name.endswith(("attn.proj.weight", "shared_experts.proj.weight", "down_ECI"))
        expected = weight.size(-1) ** -0.5 * (0.1 if residual else 1)
        assert weight.std().item() == pytest.approx(expected, rel=0.1), name


def test_a_dense_baseline_begins_with_the_weights_it_shares() -> None:
    ours = dict(build.build(tiny(), VOCAB).named_parameters())
    dense = dict(build.build(tiny(dense_baseline="active"), VOCAB).named_parameters())
    shared = ours.keys() & dense.keys()
    assert any("attn.qkv" in name for name in shared)
    assert all(ours[name].equal(dense[name]) for name in shared)


def test_tied_embeddings_are_one_tensor_and_dtype_is_as_asked() -> None:
    gpt = build.build(tiny(router="sigmoid"), VOCAB, dtype=torch.bfloat16)
    assert gpt.lm_head.weight is gpt.transformer.wte.weight
    assert {p.dtype for p in gpt.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in gpt.buffers()} == {torch.float32}  # rotary tables, the router's bias
    assert gpt(_tokens(1, 4)).isfinite().all()


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.vocab_size = 40, but the tokenizer has 50"):
        build.build(tiny(vocab_size=40), VOCAB)


# --- checkpoint folders -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint_folder.save(_model(moe_every=2), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("changes", (LITGPT_HAS | ONLY_OURS).values(), ids=LITGPT_HAS | ONLY_OURS)
def test_a_saved_model_comes_back_bit_by_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    gpt = _model(**changes)
    checkpoint_folder.save(gpt, tmp_path / "model")
    again = checkpoint_folder.load(tmp_path / "model")
    assert again.params == gpt.params
    assert again(_tokens(1, 9)).equal(gpt(_tokens(1, 9)))


def test_a_dense_baseline_comes_back_as_the_dense_model_it_is(tmp_path: Path) -> None:
    gpt = _model(dense_baseline="total")
    checkpoint_folder.save(gpt, tmp_path / "model")
    assert checkpoint_folder.load(tmp_path / "model")(_tokens(1, 9)).equal(gpt(_tokens(1, 9)))


def test_precision_on_disk_is_kept_or_changed(folder: Path) -> None:
    checkpoint_folder.save(build.build(tiny(), VOCAB, dtype=torch.bfloat16), folder)
    assert checkpoint_folder.load(folder).lm_head.weight.dtype == torch.bfloat16
    assert checkpoint_folder.load(folder, dtype=torch.float32).lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize("changes", LITGPT_HAS.values(), ids=LITGPT_HAS)
def test_a_folder_of_litgpt_alone_is_read(changes: dict[str, Any], tmp_path: Path) -> None:
    gpt = _model(**changes)
    checkpoint_folder.save(gpt, tmp_path / "model")
    (tmp_path / "model/moe.yaml").unlink()
    again = checkpoint_folder.load(tmp_path / "model")
    assert again(_tokens(1, 9)).equal(gpt(_tokens(1, 9)))


@pytest.mark.parametrize(
    ("name", "value"),
    [("rotary_percentage", 0.25), ("norm_class_name", "LayerNorm"), ("bias", True), ("mlp_class_name", "GemmaMLP"),
     ("sliding_window_size", 8), ("n_layer", "three"), ("no_such_key", 1), ("rope_adjustments", {"factor": 2.0})],
)  # fmt: skip
def test_a_litgpt_model_that_is_not_ours_is_refused_by_name(name: str, value: Any, tmp_path: Path) -> None:
    checkpoint_folder.save(_model(), tmp_path / "model")
    (tmp_path / "model/moe.yaml").unlink()
    path = tmp_path / "model/model_config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {name: value}))
    with pytest.raises(UserError, match=r"model_config\.yaml") as error:
        checkpoint_folder.load(tmp_path / "model")
    assert name in str(error.value) or name == "n_layer"


@pytest.mark.parametrize("missing", ["lit_model.pth", "model"])
def test_what_is_missing_is_named(missing: str, folder: Path) -> None:
    path = folder if missing == "model" else folder / missing
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(UserError, match=missing):
        checkpoint_folder.load(folder)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_truncated_weights_are_refused(kept: float, folder: Path) -> None:
    path = folder / "lit_model.pth"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UserError, match=r"lit_model\.pth"):
        checkpoint_folder.load(folder)


def test_one_flipped_bit_is_noticed_or_changes_nothing(folder: Path) -> None:
    path = folder / "lit_model.pth"
    whole, before = path.read_bytes(), checkpoint_folder.load(folder).state_dict()
    noticed = 0
    for place in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            after = checkpoint_folder.load(folder).state_dict()
        except UserError:
            noticed += 1
        else:
            assert all(torch.equal(after[name], before[name]) for name in before)
    assert noticed > 50
    weight = before["lm_head.weight"].numpy().tobytes()
    place = whole.index(weight) + len(weight) // 2
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(UserError, match=r"lit_model\.pth is damaged \(the checksum of .* is wrong\)"):
        checkpoint_folder.load(folder)


class _Code:
    ran = False

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("import tests.model.test_build as t; t._Code.ran = True",)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (torch.save, "more than tensors"),
        (lambda value, path: Path(path).write_bytes(pickle.dumps(value)), "no checkpoint that torch >= 1.6 writes"),
    ],
)
def test_code_in_a_checkpoint_is_not_run(write: Any, said: str, folder: Path) -> None:
    write({"lm_head.weight": _Code()}, folder / "lit_model.pth")
    with pytest.raises(UserError, match=rf"lit_model\.pth .*{said}"):
        checkpoint_folder.load(folder)
    assert not _Code.ran


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: s.pop("lm_head.weight"), r"lm_head\.weight is missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra is not of this model"),
        (lambda s: s.update({"lm_head.weight": torch.zeros(3, 32)}), r"lm_head\.weight is \(3, 32\), the config says"),
        (lambda s: s.clear(), "no state dict"),
    ],
)
def test_weights_of_another_model_are_named(spoil: Any, said: str, folder: Path) -> None:
    state = torch.load(folder / "lit_model.pth", weights_only=True)
    spoil(state)
    torch.save(state, folder / "lit_model.pth")
    with pytest.raises(UserError, match=said):
        checkpoint_folder.load(folder)


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "vocab_size: 50\nmodel: {n_layer: 3}", "\x00"])
def test_a_damaged_description_is_refused(text: str, folder: Path) -> None:
    (folder / "moe.yaml").write_text(text)
    with pytest.raises(UserError, match=r"moe\.yaml"):
        checkpoint_folder.load(folder)


def test_tokenizer_files_travel_and_weights_of_its_folder_do_not(folder: Path, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    (tokenizer / "lit_model.pth").write_text("not weights")
    gpt = checkpoint_folder.load(folder)
    checkpoint_folder.save(gpt, tmp_path / "copy", tokenizer)
    assert (tmp_path / "copy/tokenizer.json").read_text() == "{}"
    assert checkpoint_folder.load(tmp_path / "copy").params == params.Model.model_validate(gpt.params.model_dump())
