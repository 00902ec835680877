"""Settings mean what they mean in transformers, and the draw follows the distribution."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig
from transformers.generation import logits_process

from pipeline.errors import UserError
from pipeline.generate.sampling import Sampling, draw, exact, shaped, uniforms

SETTINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 0.8, 1.0, 1.7]),
    top_k=st.sampled_from([None, 1, 5, 40, 1000]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([0.8, 1.0, 1.3]),
)


def _theirs(ids_BT: torch.Tensor, logits_BV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """transformers' own processors in transformers' own order."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=logits_BV.size(1)
        )
    )
    config = GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p or None,
        repetition_penalty=sampling.repetition_penalty,
    )
    processors = model._get_logits_processor(
        config, ids_BT.size(1), ids_BT, None, logits_process.LogitsProcessorList(), device="cpu"
    )
    return processors(ids_BT, logits_BV.clone())


@settings(max_examples=60, deadline=None)
@given(sampling=SETTINGS, seed=st.integers(0, 1000))
def test_logits_are_shaped_as_transformers_shapes_them(sampling: Sampling, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    logits_BV = 3 * torch.randn(3, 200, generator=draws)
    ids_BT = torch.randint(200, (3, 12), generator=draws)
    seen_BV = torch.zeros(3, 200, dtype=torch.bool).scatter_(1, ids_BT, True)
    ours = shaped(logits_BV, seen_BV if sampling.repetition_penalty != 1 else None, sampling)
    torch.testing.assert_close(ours, _theirs(ids_BT, logits_BV, sampling), rtol=1e-6, atol=1e-6)


def test_the_draw_follows_the_softmax() -> None:
    logits_V = torch.tensor([1.0, -torch.inf, 0.0, 2.0, -1.0])
    n = 200_000
    token_B = draw(logits_V.expand(n, -1), Sampling(), uniforms(Sampling(seed=3), "a prompt", n))
    share_V = token_B.bincount(minlength=5) / n
    expected_V = logits_V.softmax(0)
    assert ((share_V - expected_V).abs() < 5 * (expected_V * (1 - expected_V) / n).sqrt() + 1e-9).all()


def test_the_draw_stays_on_its_device_but_for_mps_which_has_no_float64() -> None:
    assert [str(exact(torch.device(name))) for name in ("cpu", "cuda:1", "mps")] == ["cpu", "cuda:1", "cpu"]


@pytest.mark.parametrize("uniform", [2.0**-60, 0.5, 1.0])
def test_a_token_of_probability_0_is_never_drawn(uniform: float) -> None:
    logits_BV = torch.full((1, 7), -torch.inf)
    logits_BV[0, 3] = -80.0
    assert draw(logits_BV, Sampling(), torch.tensor([uniform], dtype=torch.float64)).item() == 3


def test_random_numbers_depend_on_seed_and_prompt_and_nothing_else() -> None:
    first = uniforms(Sampling(seed=1), "Once", 10)
    torch.rand(5)
    assert torch.equal(first, uniforms(Sampling(seed=1, temperature=0.1), "Once", 10))
    assert torch.equal(first[:4], uniforms(Sampling(seed=1), "Once", 4))
    assert not torch.equal(first, uniforms(Sampling(seed=2), "Once", 10))
    assert not torch.equal(first, uniforms(Sampling(seed=1), "Twice", 10))
    assert ((first > 0) & (first <= 1)).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("stop", ("",)),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"{name} = .*allowed"):
        Sampling(**{name: value})  # type: ignore[arg-type]
