"""What is shown under each token, against the logits of the whole text and the routers' own arithmetic."""

import re
from pathlib import Path

import pytest
import torch

from pipeline import params
from pipeline.errors import UserError
from pipeline.generate.generation import Generator
from pipeline.generate.inspection import inspect
from pipeline.model.routing import Router
from tests.generate.making import made


@pytest.fixture(scope="module", params=["softmax", "sigmoid", "qk-norm"])
def generator(
    request: pytest.FixtureRequest, work: Path, parameters: params.Params, tmp_path_factory: pytest.TempPathFactory
) -> Generator:
    return made(parameters, tmp_path_factory.mktemp("made") / "litgpt", work / "data/tokenizer", request.param)


@torch.inference_mode()
def test_probabilities_and_experts_are_those_of_the_model(generator: Generator) -> None:
    text = "One day, a little girl named Lily went to the park with her dog"
    ids = generator.encode(text)
    seen: list[torch.Tensor] = []
    routers = [module for module in generator.model.modules() if isinstance(module, Router)]
    hooks = [router.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0])) for router in routers]
    probability_TV = generator.model(torch.tensor([ids]))[0].double().softmax(-1)
    for hook in hooks:
        hook.remove()
    found = inspect(generator, ids, n_alternatives=3)
    assert "".join(token.text for token in found.tokens) == text
    blocks = [list(block.modules()) for block in generator.model.transformer.h]
    assert found.layers == [i for i, parts in enumerate(blocks) if any(isinstance(part, Router) for part in parts)]
    assert found.tokens[0].probability is None and not found.tokens[0].alternatives
    for t, token in enumerate(found.tokens):
        if t:
            assert token.probability == pytest.approx(float(probability_TV[t - 1, ids[t]]), abs=1e-5)
            best = probability_TV[t - 1].topk(3)
            assert token.alternatives == [
                (generator.tokenizer.decode([i], skip_special_tokens=False), pytest.approx(p, abs=1e-5))
                for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
        for router, x_TC, experts in zip(routers, seen, token.experts, strict=True):
            weight_K, index_K = (x[t] for x in router(x_TC)[:2])
            assert [e for e, _ in experts] == index_K.tolist()
            assert [w for _, w in experts] == pytest.approx(weight_K.tolist(), abs=1e-6)
    for layer, shares in enumerate(found.load()):
        visits = [e for token in found.tokens for e, _ in token.experts[layer]]
        assert shares == pytest.approx([visits.count(e) / len(visits) for e in range(found.n_expert)])
    assert not any(module._forward_hooks for module in generator.model.modules())


def test_a_dense_model_has_probabilities_alone(work: Path, parameters: params.Params, tmp_path: Path) -> None:
    dense = made(parameters, tmp_path / "litgpt", work / "data/tokenizer", "dense")
    found = inspect(dense, dense.encode("Once upon a time"))
    assert (found.layers, found.load()) == ([], []) and found.tokens[2].probability is not None


def test_special_tokens_have_their_name_and_half_characters_wait_for_the_rest(generator: Generator) -> None:
    eos = min(generator.eos_ids)
    found = inspect(generator, [*generator.encode("dog"), eos, *generator.encode("cat")])
    texts = [token.text for token in found.tokens]
    assert "<|endoftext|>" in texts and re.fullmatch("dog.*cat", "".join(texts))


def test_what_the_model_cannot_read_is_refused(generator: Generator) -> None:
    with pytest.raises(UserError, match="the text is empty"):
        inspect(generator, [])
    with pytest.raises(UserError, match=r"65 tokens; the model's context is 64"):
        inspect(generator, [5] * 65)
