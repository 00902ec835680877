"""The model card: README.md of an exported folder, with the front matter that the Hugging Face Hub reads.

    write(params, reports.read(REPORTS), folder, facts)     # last of all: it lists each file's hash

What it says of the data and the quality comes from the reports of the other stages (sample text: the details that the
evaluation keeps for its plots); a report that is not there leaves its part out.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from pipeline import hashing
from pipeline.errors import UserError
from pipeline.export.reports import Reports, Sample
from pipeline.params import Params

_CARD = """\
---
{{ front }}
---

# {{ params.export.name }}

{{ what }}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "."  # this folder, or its name on the Hub
model = AutoModelForCausalLM.from_pretrained(path)
tokenizer = AutoTokenizer.from_pretrained(path)
{%- if conversation %}
turns = [{"role": "user", "content": {{ json.dumps(prompt, ensure_ascii=False) }}}]
prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
{%- else %}
prompt = tokenizer({{ json.dumps(prompt, ensure_ascii=False) }}, return_tensors="pt")
{%- endif %}
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=100, do_sample=True)[0]))
```
{%- for file in gguf %}

`{{ file }}` is for llama.cpp: `llama-cli -m {{ file }} -p {{ shlex.quote(prompt) }}`
{%- endfor %}

## Figures

| | |
| --- | --- |
{%- for name, value in figures %}
| {{ name }} | {{ value }} |
{%- endfor %}
{%- if samples %}

## Samples
{%- for sample in samples %}

Temperature {{ sample.temperature }}:

{{ quoted(sample.prompt + sample.text) }}
{%- endfor %}
{%- endif %}

## Training

{% if data %}{{ data }} {% endif -%}
To train it again, save these parameters as `params.yaml` in the project's folder and run `uv run dvc repro`.

<details><summary>Parameters</summary>

```yaml
{{ parameters }}```

</details>

## Files

| file | bytes | SHA-256 |
| --- | ---: | --- |
{% for file in files %}| `{{ file.name }}` | {{ file.bytes }} | `{{ file.sha256 }}` |
{% endfor %}
All of them together (names and contents): `{{ content_hash }}`
"""


def write(
    params: Params, reports: Reports, folder: Path, facts: dict[str, Any], instruction: str | None = None
) -> None:
    """Write folder/README.md. `facts`: what `huggingface.to_huggingface` returned.

    `instruction`: one that a finetuned model was trained to follow.
    """
    finetuned = "" if instruction is None else _FINETUNED[params.finetune.method]
    files = [file for file in hashing.files_below(folder) if file.name != "README.md"]
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False).from_string(_CARD)
    text = template.render(
        json=json,
        shlex=shlex,
        params=params,
        front=_front_matter(params, reports, facts),
        what=_what(facts, finetuned),
        prompt=instruction or reports.prompt(params),
        conversation=bool(finetuned),
        gguf=[file.name for file in files if file.suffix == ".gguf"],
        figures=_figures(reports, facts),
        samples=_samples(reports.details.samples.stories),
        quoted=lambda words: "\n".join(f"> {line}".rstrip() for line in words.strip().split("\n")),
        data=reports.download.card,
        parameters=yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        files=[
            {"name": file.name, "bytes": f"{file.stat().st_size:,}", "sha256": hashing.file_sha256(file)}
            for file in files
        ],
        content_hash=hashing.content_hash(folder, files),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def refuse_damage(folder: Path, pattern: str = "*") -> None:
    """Raise UserError where a file of the folder is not the one whose SHA-256 the card there lists, if there is one."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    listed = dict(re.findall(r"^\| `(.+)` \| [\d,]+ \| `([0-9a-f]{64})` \|$", text, re.MULTILINE))
    for file in folder.glob(pattern):
        expected = listed.get(file.name)
        if expected and hashing.file_sha256(file) != expected:
            raise UserError(
                f"{file} is not the file whose SHA-256 {card} lists: it was damaged or changed since; export again "
                "(dvc repro -f export), or fetch the folder again"
            )


def about(params: Params, reports: Reports, facts: dict[str, Any]) -> dict[str, Any]:
    """What a GGUF file says of itself: keys of its `general.*`."""
    said: dict[str, Any] = {
        "name": params.export.name,
        "license": params.export.licence,
        "tags": ["text-generation", _kind(facts)],
    }
    if reports.download.dataset:
        said["datasets"] = [reports.download.dataset]
    if reports.download.card:
        said["description"] = reports.download.card
    return said


def _kind(facts: dict[str, Any]) -> str:
    return "mixture-of-experts" if facts["active_parameters"] < facts["parameters"] else "dense"


def _front_matter(params: Params, reports: Reports, facts: dict[str, Any]) -> str:
    found = reports.evaluate.val.model_dump(include={"loss", "perplexity", "bits_per_byte"}, exclude_none=True)
    data, source = reports.download.dataset, params.download.source
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=data or source,
            dataset_name=data or f"{source} (validation part)",
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for metric, value in found.items()
    ]
    front = ModelCardData(
        license=params.export.licence,
        library_name="transformers",
        pipeline_tag="text-generation",
        datasets=[data] if data else None,
        metrics=["perplexity"] if "perplexity" in found else None,
        tags=[_kind(facts), "litgpt"],
        model_name=params.export.name if results else None,
        eval_results=results or None,
    )
    return str(front.to_yaml()).strip()


_FINETUNED = {
    "full": ", and finetuned on conversations",
    "lora": ", and finetuned on conversations (LoRA, added to the weights)",
}


def _what(facts: dict[str, Any], finetuned: str) -> str:
    size = f"{facts['parameters']:,} parameters"
    if facts["active_parameters"] < facts["parameters"]:
        size += f", {facts['active_parameters']:,} of them active for each token"
    other = facts["greedy_tokens"] - facts["greedy_tokens_equal"]
    text = (
        f"A `{facts['class']}` of {size}, in {facts['dtype']}, trained from scratch{finetuned}. When it was exported, "
        f"plain transformers loaded this folder and gave the trained model's logits (largest difference "
        f"{facts['max_logit_difference']:.0e} at {facts['positions_equal']} positions, in float32) and its greedy "
        f"tokens ({facts['greedy_tokens_equal']} of {facts['greedy_tokens']})."
    )
    if other or facts["near_ties"]:
        text += (
            f" At the rest ({facts['near_ties']} positions, {other} tokens) rounding decided between two experts or "
            "two tokens that were almost equally good."
        )
    return text


def _figures(reports: Reports, facts: dict[str, Any]) -> list[tuple[str, str]]:
    found = [("vocabulary", f"{facts['vocab_size']:,} tokens")]
    if reports.train.tokens is not None:
        found.append(("trained on", f"{reports.train.tokens:,} tokens"))
    words = {"loss": "loss, nats per token", "bits_per_byte": "bits per byte", "accuracy": "next-token accuracy"}
    for name, value in reports.evaluate.val.model_dump(exclude_none=True).items():
        found.append((f"{words.get(name, name)} (validation)", f"{value:.4f}"))
    return found


def _samples(samples: list[Sample]) -> list[Sample]:
    """The first sample of each prompt, at the lowest temperature that draws at random; of three prompts at most."""
    temperature = min((sample.temperature for sample in samples if sample.temperature > 0), default=0.0)
    first: dict[str, Sample] = {}
    for sample in samples:
        if sample.temperature == temperature:
            first.setdefault(sample.prompt, sample)
    return list(first.values())[:3]
