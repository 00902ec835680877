"""The model card: README.md of an exported folder, with the front matter that the Hugging Face Hub reads.

    write(params, reports, folder, facts)     # after everything else stands in the folder: it lists each file's hash

What it says of the data and the quality comes from the reports of the other stages (sample text: the details that the
evaluation keeps for its plots); a report that is not there leaves its part out.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from pipeline import console, hashing
from pipeline.errors import UserError
from pipeline.params import HuggingFace, Params, Url

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
prompt = tokenizer("{{ prompt }}", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=100, do_sample=True)[0]))
```
{%- for file in gguf %}

`{{ file }}` is for llama.cpp: `llama-cli -m {{ file }} -p "{{ prompt }}"`
{%- endfor %}

## Figures

| | |
| --- | --- |
{%- for name, value in figures %}
| {{ name }} | {{ value }} |
{%- endfor %}
{%- if samples %}

## What it writes
{%- for sample in samples %}

Temperature {{ sample.temperature }}:

{{ quoted(sample.prompt + sample.text) }}
{%- endfor %}
{%- endif %}

## How it came about

{{ data }} Save the parameters below as `params.yaml` in the project's folder and run `uv run dvc repro`.

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


def write(params: Params, reports: Path, folder: Path, facts: dict[str, Any]) -> None:
    """Write folder/README.md. `facts`: what `huggingface.to_huggingface` returned, and `active_parameters`."""
    said = {name: _read(reports / f"{name}.json") for name in ("download", "clean", "tokenize", "train", "evaluate")}
    files = [file for file in hashing.files_below(folder) if file.name != "README.md"]
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False).from_string(_CARD)
    prompt = params.evaluate.prompts[0].replace('"', "'").replace("\n", " ")
    text = template.render(
        params=params,
        front=_front_matter(params, said["evaluate"], facts),
        what=_what(facts),
        prompt=prompt,
        gguf=[file.name for file in files if file.suffix == ".gguf"],
        figures=_figures(said, facts),
        samples=_samples(_read(reports / "plots" / "evaluate" / "details.json")),
        quoted=lambda words: "\n".join(f"> {line}".rstrip() for line in words.strip().split("\n")),
        data=_data(params, said["download"]),
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


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _front_matter(params: Params, evaluated: dict[str, Any], facts: dict[str, Any]) -> str:
    val = evaluated.get("val", {})
    data = params.download.repo if isinstance(params.download, HuggingFace) else None
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=data or params.download.source,
            dataset_name=data or f"{params.download.source} (validation part)",
            metric_type=metric,
            metric_value=round(val[metric], 4),
        )
        for metric in ("loss", "perplexity", "bits_per_byte")
        if metric in val
    ]
    kind = "mixture-of-experts" if facts["active_parameters"] < facts["parameters"] else "dense"
    front = ModelCardData(
        license=params.export.licence,
        library_name="transformers",
        pipeline_tag="text-generation",
        datasets=[data] if data else None,
        metrics=["perplexity"] if "perplexity" in val else None,
        tags=[kind, "litgpt"],
        model_name=params.export.name if results else None,
        eval_results=results or None,
    )
    return str(front.to_yaml()).strip()


def _what(facts: dict[str, Any]) -> str:
    size = f"{facts['parameters']:,} parameters"
    if facts["active_parameters"] < facts["parameters"]:
        size += f", of which a token meets {facts['active_parameters']:,}"
    return (
        f"A `{facts['class']}` of {size}, in {facts['dtype']}, trained from scratch. When it was exported, stock "
        f"transformers loaded this folder and gave the trained model's logits (largest "
        f"difference {facts['max_logit_difference']:.0e} at {facts['positions_equal']} positions, in float32) and "
        f"its greedy tokens ({facts['greedy_tokens_equal']} of {facts['greedy_tokens']}). {_near_ties(facts)}".strip()
    )


def _near_ties(facts: dict[str, Any]) -> str:
    """What is not equal, and why that was let pass."""
    other = facts["greedy_tokens"] - facts["greedy_tokens_equal"]
    if not other and not facts["near_ties"]:
        return ""
    return (
        f"In the rest ({facts['near_ties']} positions, {other} tokens) rounding had decided between two experts or two "
        "tokens that were almost equally good."
    )


def _figures(said: dict[str, Any], facts: dict[str, Any]) -> list[tuple[str, str]]:
    found = [("vocabulary", f"{facts['vocab_size']:,} tokens")]
    if "tokens" in said["train"]:
        found.append(("trained on", f"{said['train']['tokens']:,} tokens"))
    names = {"loss": "loss, nats a token", "perplexity": "perplexity", "bits_per_byte": "bits per byte"}
    names |= {"accuracy": "next token right"}
    val = said["evaluate"].get("val", {})
    found += [(f"{words} (validation)", f"{val[name]:.4f}") for name, words in names.items() if name in val]
    return found


def _samples(details: dict[str, Any]) -> list[dict[str, Any]]:
    """The first story of each prompt, at the lowest temperature that draws at random; of three prompts at most."""
    stories = details.get("samples", {}).get("stories", [])
    temperature = min((story["temperature"] for story in stories if story["temperature"] > 0), default=0.0)
    first: dict[str, dict[str, Any]] = {}
    for story in stories:
        if story["temperature"] == temperature:
            first.setdefault(story["prompt"], story)
    return list(first.values())[:3]


def _data(params: Params, downloaded: dict[str, Any]) -> str:
    source = params.download
    if isinstance(source, HuggingFace):
        words = f"Data: [{source.repo}](https://huggingface.co/datasets/{source.repo}) at {source.revision or 'main'}"
    else:
        words = {
            "bundled": "Data: stories told by the generator that the project contains",
            "local": "Data: files of the author",
            "url": "Data: files from the addresses in the parameters",
            "wandb": "Data: the W&B artifact in the parameters",
        }[source.source]
    if isinstance(source, HuggingFace | Url) and (licence := source.licence or downloaded.get("licence")):
        words += f", licence {licence}"
    if "documents" in downloaded and "bytes" in downloaded:
        words += f"; {downloaded['documents']:,} documents, {console.size(downloaded['bytes'])}"
    return f"{words}."
