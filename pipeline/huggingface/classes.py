"""The transformers classes that models are written for and read from, in the order in which they are tried.

A new class is one module like its neighbours and one line in `ADAPTERS`. Imports neither torch nor transformers.
"""

from typing import TYPE_CHECKING, Any

from pipeline.huggingface.adapter import Adapter, different
from pipeline.huggingface.glm4_moe import Glm4Moe
from pipeline.huggingface.llama import Llama
from pipeline.huggingface.mixtral import Mixtral
from pipeline.huggingface.qwen2_moe import Qwen2Moe
from pipeline.huggingface.qwen3 import Qwen3
from pipeline.huggingface.qwen3_moe import Qwen3Moe

if TYPE_CHECKING:
    from pipeline.params import Model

ADAPTERS: tuple[Adapter, ...] = (Llama(), Qwen3(), Mixtral(), Qwen2Moe(), Qwen3Moe(), Glm4Moe())
BY_NAME = {adapter.name: adapter for adapter in ADAPTERS}


def adapter_of(model: "Model") -> Adapter:
    """The first class that computes this model exactly; ValueError, with the nearest ones, where there is none."""
    if model.dense_baseline != "none":
        model = model.model_copy(update={"n_expert": 0})
    candidates = [a for a in ADAPTERS if (a.only.get("n_expert") == 0) == (model.n_expert == 0)]
    misfits = {adapter.name: adapter.misfits(model) for adapter in candidates}
    for adapter in candidates:
        if not misfits[adapter.name]:
            return adapter
    fewest = min(map(len, misfits.values()))
    near = {name: found for name, found in misfits.items() if len(found) == fewest}
    fields = dict.fromkeys(field for found in near.values() for field in found)
    given = ", ".join(_said(field, getattr(model, field)) for field in fields)
    take = {" and ".join(_said(*pair) for pair in found.items()): name for name, found in reversed(near.items())}
    raise ValueError(
        f"{given}: no transformers class computes this together; take "
        + " or ".join(f"{words} ({name})" for words, name in reversed(take.items()))
    )


def gguf_architecture(model: "Model") -> str:
    """Name of the architecture of llama.cpp that computes this model; ValueError where there is none.

    What each can do is in llama.cpp's src/models/{llama,qwen3,qwen2moe,qwen3moe,glm4-moe}.cpp.
    """
    adapter = adapter_of(model)
    if adapter.gguf is None:
        raise ValueError(f"export.gguf: llama.cpp has no architecture for {adapter.name}; take []")
    for field, value in different(model, adapter.gguf_only).items():
        raise ValueError(
            f"model.{_said(field, getattr(model, field))}: llama.cpp's {adapter.gguf} computes only "
            f"{_said(field, value)}; take that, or export.gguf: []"
        )
    return adapter.gguf


def _said(field: str, value: Any) -> str:
    written = {True: "true", False: "false", None: "null"}
    return f"{field}: {written[value] if value is None or isinstance(value, bool) else value}"
