"""The parameters of a run: Pydantic models of params.yaml with every rule that can be checked without a device.

    params = load("params.yaml")     # a Params, or a UserError that names each wrong path

Every key must be there and no other may be: what a run did stands whole in params.yaml, so this file can change
without changing a result, and a misspelt key is refused with the nearest known name. How a run is *watched*
(W&B, progress, log level) never stands here: watching a run must not make DVC run it again.
"""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline import derived
from pipeline.errors import UserError

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, protected_namespaces=())


# --- download ---------------------------------------------------------------------------------------------------------


class _Download(Section):
    watch: str = Field(description="file or folder whose content DVC watches for this stage (see dvc.yaml)")
    max_documents: Positive | None = Field(description="documents to keep at most (of a val split: a tenth); null: all")
    max_bytes: Positive | None = Field(description="bytes of text to keep at most; null: all")
    sample_fraction: Annotated[float, Field(gt=0, le=1)] = Field(description="share of documents kept, by seeded hash")
    seed: int = Field(description="seed of the sample, and of the bundled stories")


class _Text(_Download):
    text_column: str = Field(description="field of a jsonl or parquet record that holds the text")
    split: Literal["auto", "separator", "lines", "blank_lines", "lone_newlines", "whole"] = Field(
        description="how a plain text file falls into documents; auto: guessed, and the guess is reported. "
        "lone_newlines: blank lines stand between paragraphs, a single line break ends the document"
    )
    separator: str = Field(min_length=1, description="document marker for split: separator (and looked for by auto)")


class Bundled(_Download):
    source: Literal["bundled"]
    documents: Positive = Field(description="stories to tell")


class Local(_Text):
    source: Literal["local"]
    path: str = Field(min_length=1, description="file, folder or glob: .txt, .jsonl, .parquet, each also .gz or .zst")
    pattern: str = Field(min_length=1, description="which files of a folder, as a glob")

    @model_validator(mode="after")
    def _watch_is_no_glob(self) -> Self:
        if any(sign in self.watch for sign in "*?[") and not Path(self.watch).exists():
            raise ValueError(
                f"watch: {self.watch!r} is a glob, and DVC hashes a file or folder; set it to the folder of the files"
            )
        return self


class HuggingFace(_Text):
    source: Literal["huggingface"]
    repo: str | None = Field(description="data set on the Hugging Face Hub, as owner/name")
    revision: str | None = Field(description="commit, tag or branch; a commit pins the data")
    config: str | None = Field(description="configuration that the data set's card declares, or a folder; null: all")
    splits: dict[Literal["train", "val"], str] = Field(
        min_length=1, description="glob of each split's files, or of its name in a declared config: {train: '*train*'}"
    )
    licence: str | None = Field(description="licence of the data, for the manifest; null: as the data set's card says")

    @model_validator(mode="after")
    def _repo_given(self) -> Self:
        if not self.repo:
            raise ValueError("repo: name the data set, as in -S download=huggingface -S download.repo=owner/name")
        return self


class Url(_Text):
    source: Literal["url"]
    urls: list[str] = Field(description="http(s) addresses of .txt, .jsonl, .parquet, also .gz, .zst, .zip, .tar")
    sha256: list[str] = Field(description="expected sha256 of each file, in the order of urls; empty: not checked")
    max_download_bytes: Positive = Field(description="refuse a file larger than this, bytes")
    licence: str | None = Field(description="licence of the data, for the manifest and the model card")

    @model_validator(mode="after")
    def _urls_given(self) -> Self:
        if not self.urls:
            raise ValueError("urls: give at least one address, as in -S 'download.urls=[https://…]'")
        if odd := [url for url in self.urls if not re.match(r"https?://[^/]", url)]:
            raise ValueError(f"urls: {odd[0]!r}; allowed: addresses that begin with http:// or https://")
        if len(set(self.urls)) < len(self.urls):
            raise ValueError(f"urls: {max(self.urls, key=self.urls.count)!r} stands there twice; name each file once")
        if self.sha256 and len(self.sha256) != len(self.urls):
            raise ValueError(f"sha256: {len(self.sha256)} given for {len(self.urls)} urls; one each, or none")
        return self


class Wandb(_Download):
    source: Literal["wandb"]
    artifact: str | None = Field(description="dataset artifact, as entity/project/name:alias")

    @model_validator(mode="after")
    def _artifact_given(self) -> Self:
        if not self.artifact or ":" not in self.artifact:
            raise ValueError("artifact: name it as entity/project/name:alias, e.g. team/moe-stories/clean:v3")
        return self


Download = Annotated[Union[Bundled, Local, HuggingFace, Url, Wandb], Field(discriminator="source")]


# --- clean ------------------------------------------------------------------------------------------------------------


class Quality(Section):
    """Gopher's rules (Rae et al. 2021, table A1), each as a bound on one document."""

    enabled: bool
    mean_word_length: tuple[float, float] = Field(description="allowed range, characters")
    max_symbol_ratio: Fraction = Field(description="'#' and '…' per word, at most")
    min_alphabetic_words: Fraction = Field(description="share of words with a letter, at least")
    max_duplicate_lines: Fraction = Field(description="share of lines that repeat an earlier line, at most")
    max_top_ngram: Fraction = Field(description="share of characters in the most common 3-word sequence, at most")


class NearDuplicates(Section):
    """MinHash LSH (Broder 1997): shingles of words, `bands` x `rows` hashes."""

    enabled: bool
    shingle_words: Positive = Field(description="words in a row that are compared; each Han character is a word")
    bands: Positive
    rows: Positive
    threshold: Fraction = Field(description="estimated Jaccard similarity from which two documents are one")


class Clean(Section):
    watch: str = Field(description="file or folder whose content DVC watches for this stage: that of decontaminate")
    fix_encoding: bool = Field(description="repair mojibake with ftfy")
    unicode_form: Literal["NFC", "NFKC", "none"]
    tidy_whitespace: bool = Field(description="drop control characters, even out white space")
    min_chars: Annotated[int, Field(ge=0)] = Field(description="shorter documents are dropped, characters")
    max_chars: Positive | None = Field(description="longer documents are dropped, characters; null: no bound")
    script: Literal["any", "latin", "han"] = Field(description="script that must prevail in a document")
    min_script_share: Fraction = Field(description="share of letters in that script, at least")
    quality: Quality
    exact_duplicates: bool = Field(description="keep one of each text")
    near_duplicates: NearDuplicates
    decontaminate: list[str] = Field(description="files whose n-grams must not stand in the training set")
    decontaminate_val: bool = Field(description="drop training documents that share an n-gram with val")
    decontaminate_ngram: Positive = Field(description="words in a row that count as the same; a Han character is one")
    mask_personal_data: bool = Field(description="replace e-mail addresses, phone numbers and IP addresses")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(description="share of documents for validation, by hash")


# --- tokenizer --------------------------------------------------------------------------------------------------------


class Tokenizer(Section):
    watch: str = Field(description="file or folder whose content DVC watches for this stage (see dvc.yaml)")
    kind: Literal["train", "adopt", "bytes", "characters"]
    vocab_size: Positive | None = Field(description="tokens to train, special ones included; null unless kind: train")
    path: str | None = Field(description="kind adopt: folder, tokenizer.json, SentencePiece model or Hub id")
    revision: str | None = Field(description="kind adopt with a Hub id: its commit, tag or branch")
    end_token: str = Field(min_length=1, description="marker written after every document")
    special_tokens: list[str] = Field(description="further tokens that text never produces by itself")
    split_digits: bool = Field(description="one token a digit")
    min_frequency: Positive = Field(description="pairs seen less often are not merged")
    train_bytes: Positive | None = Field(description="bytes of text the tokenizer is trained on; null: all")
    chunk_tokens: Annotated[int, Field(ge=1, le=2**30 - 3)] = Field(
        description="tokens in a litdata chunk, whose offsets are 32-bit byte counts"
    )

    @model_validator(mode="after")
    def _kind_fits(self) -> Self:
        if self.kind == "train" and self.vocab_size is None:
            raise ValueError("vocab_size: needed for kind: train")
        if self.kind == "train" and self.vocab_size is not None:
            least = 256 + 1 + len(self.special_tokens)
            if self.vocab_size < least:
                raise ValueError(f"vocab_size: {self.vocab_size} is too small; 256 bytes and the markers need {least}")
        if self.kind != "train" and self.vocab_size is not None:
            raise ValueError(f"vocab_size: {self.vocab_size}; kind: {self.kind} has its own, so allowed: null")
        if self.kind == "adopt" and not self.path:
            raise ValueError("path: name the tokenizer to adopt (folder, tokenizer.json, *.model or Hub id)")
        if self.kind != "adopt" and (self.path or self.revision):
            raise ValueError(f"path: {self.path!r} at {self.revision!r} means nothing with kind: {self.kind}; set null")
        markers = [self.end_token, *self.special_tokens]
        if len(set(markers)) < len(markers) or "" in markers:
            raise ValueError(f"special_tokens: {self.special_tokens}; allowed: not empty, each once, not the end_token")
        return self


# --- model ------------------------------------------------------------------------------------------------------------


class RopeScaling(Section):
    """Llama 3's stretching of low rotary frequencies (arXiv 2407.21783)."""

    factor: Annotated[float, Field(ge=1)]
    low_freq_factor: Annotated[float, Field(gt=0)]
    high_freq_factor: Annotated[float, Field(gt=0)]
    original_block_size: Positive


class Model(Section):
    vocab_size: Positive | None = Field(description="rows of the embedding; null: as many as the tokenizer has")
    padding_multiple: Positive = Field(description="the embedding is padded to a multiple of this")
    block_size: Positive = Field(description="longest context, tokens")
    n_layer: Positive
    n_embd: Positive
    n_head: Positive
    head_size: Positive | None = Field(description="null: n_embd / n_head")
    n_query_groups: Positive = Field(description="key/value heads: n_head is MHA, 1 is MQA, between is GQA")
    norm_qk: bool = Field(description="RMSNorm on queries and keys, per head")
    norm_eps: Annotated[float, Field(gt=0)]
    tie_embeddings: bool
    rope_base: Annotated[int, Field(ge=1)]
    rope_scaling: RopeScaling | None
    intermediate_size: Positive = Field(description="width of a dense layer's MLP")
    n_expert: Annotated[int, Field(ge=0)] = Field(description="experts in a MoE layer; 0: a dense model")
    n_expert_per_token: Annotated[int, Field(ge=0)] = Field(description="experts that each token visits")
    moe_intermediate_size: Positive = Field(description="width of one expert")
    n_shared_expert: Annotated[int, Field(ge=0)] = Field(description="experts that every token visits besides")
    moe_every: Positive = Field(description="every n-th layer is MoE (2: layers 2, 4, 6, …)")
    first_k_dense_replace: Annotated[int, Field(ge=0)] = Field(description="the first k layers are dense")
    router: Literal["softmax", "sigmoid"] = Field(description="softmax top-k, or sigmoid with a balancing bias")
    norm_topk_prob: bool = Field(description="the weights of a token's experts sum to one")
    routed_scaling_factor: Annotated[float, Field(gt=0)]
    twin: Literal["none", "active", "total"] = Field(
        description="train the dense model with the same active or total parameters instead"
    )

    @field_validator("n_query_groups")
    @classmethod
    def _groups_divide(cls, groups: int, info: Any) -> int:
        n_head = info.data.get("n_head")
        if n_head and n_head % groups:
            raise ValueError(f"must divide n_head = {n_head}; allowed: {_divisors(n_head)}")
        return groups

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.head_size is None and self.n_embd % self.n_head:
            raise ValueError(
                f"n_head: {self.n_head} does not divide n_embd = {self.n_embd}; "
                f"allowed: {_divisors(self.n_embd)} (or set head_size)"
            )
        if self.n_expert and not 1 <= self.n_expert_per_token <= self.n_expert:
            raise ValueError(f"n_expert_per_token: {self.n_expert_per_token}; allowed: 1 to n_expert = {self.n_expert}")
        if self.n_expert and self.moe_every > self.n_layer:
            raise ValueError(f"moe_every: {self.moe_every} leaves no MoE layer; allowed: 1 to n_layer = {self.n_layer}")
        if self.n_expert and not self.moe_layers:
            raise ValueError(
                f"first_k_dense_replace: {self.first_k_dense_replace} leaves no MoE layer among {self.n_layer}"
            )
        if (self.head_size or self.n_embd // self.n_head) % 2:
            raise ValueError("head_size: must be even for rotary embeddings")
        return self

    @model_validator(mode="after")
    def _exportable(self) -> Self:
        self.stock_class  # noqa: B018 - raises where no class fits
        return self

    @property
    def stock_class(self) -> str:
        return derived.stock_class(self)

    @property
    def gguf_architecture(self) -> str:
        return derived.gguf_architecture(self)

    @property
    def moe_layers(self) -> list[int]:
        return derived.moe_layers(self)


# --- train ------------------------------------------------------------------------------------------------------------


class Optimizer(Section):
    name: Literal["adamw", "muon", "adamw8bit"] = Field(description="muon: Muon for matrices, AdamW for the rest")
    lr: Annotated[float, Field(gt=0)] = Field(description="peak learning rate (of AdamW's share, with muon)")
    muon_lr: Annotated[float, Field(gt=0)] = Field(description="peak learning rate of Muon's share")
    betas: tuple[Fraction, Fraction]
    eps: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)] = Field(description="on matrices; norms and biases have none")
    grad_clip: Annotated[float, Field(ge=0)] = Field(description="largest gradient norm; 0: no clipping")


class Schedule(Section):
    name: Literal["cosine", "linear", "wsd", "constant"] = Field(description="wsd: warm up, stay, then decay")
    warmup: Annotated[float, Field(ge=0)] = Field(description="steps if 1 or more, a share of the run if below 1")
    decay: Fraction = Field(description="wsd: share of the run that decays")
    min_lr: Annotated[float, Field(ge=0)] = Field(description="the floor, as an absolute learning rate")
    min_lr_fraction: Fraction = Field(description="the floor, as a share of the peak; the higher of the two holds")


class RoutingGate(Section):
    """Routing that must hold once `grace` has passed, or the stage warns or fails."""

    action: Literal["off", "warn", "fail"]
    grace: Fraction = Field(description="share of the run before the gate looks")
    max_dead_experts: Annotated[int, Field(ge=0)] = Field(description="experts without a token, in any one layer")
    max_violation: Annotated[float, Field(gt=0)] = Field(description="(largest load / mean load) - 1, per layer")
    min_load_entropy: Fraction = Field(description="entropy of the load / log(n_expert), per layer")


class Train(Section):
    seed: int
    device: Literal["auto", "cpu", "cuda", "mps"]
    devices: Positive = Field(description="processes (GPUs, or CPU processes) on each node")
    num_nodes: Positive
    strategy: Literal["auto", "ddp", "fsdp"]
    precision: Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed"]
    compile: Literal["auto", "on", "off"] = Field(description="auto: only where compiling pays back within the run")
    initial_checkpoint: str | None = Field(description="litgpt checkpoint folder whose weights to begin with")
    block_size: Positive = Field(description="tokens in a training sample")
    document_mask: bool = Field(description="attention stays within a document; positions restart")
    global_batch_size: Positive = Field(description="samples in one optimizer step, over all devices")
    micro_batch_size: Positive = Field(description="samples in one forward pass, on one device")
    max_tokens: Positive | None = Field(description="stop after this many; the first bound that is met ends the run")
    max_steps: Positive | None
    max_epochs: Annotated[float, Field(gt=0)] | None
    max_minutes: Annotated[float, Field(gt=0)] | None = Field(
        description="wall time of one session of training; the run needs another bound, and goes on to it in the next"
    )
    optimizer: Optimizer
    schedule: Schedule
    activation_checkpointing: bool
    loss_chunk: Annotated[int, Field(ge=0)] = Field(description="tokens whose logits are held at a time; 0: all")
    balance_coef: Annotated[float, Field(ge=0)] = Field(description="weight of the load balancing loss")
    z_loss_coef: Annotated[float, Field(ge=0)] = Field(description="weight of the router's z-loss")
    bias_update_rate: Annotated[float, Field(ge=0)] = Field(description="router: sigmoid, step of its balancing bias")
    routing_gate: RoutingGate
    eval_every: Annotated[int, Field(ge=0)] = Field(description="steps between looks at val; 0: only at the end")
    eval_samples: Positive = Field(description="val samples in such a look")
    log_every: Positive = Field(description="steps between lines of metrics")
    checkpoint_every: Positive = Field(description="steps between checkpoints to resume from")
    keep_checkpoints: Positive
    num_workers: Annotated[int, Field(ge=0)] = Field(description="processes that read tokens")
    max_bad_steps: Annotated[int, Field(ge=0)] = Field(description="steps with a loss that is not finite, in a row")

    @property
    def accumulation(self) -> int:
        return derived.accumulation(self)

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        at_once = self.micro_batch_size * self.devices * self.num_nodes
        if self.global_batch_size % at_once:
            raise ValueError(
                f"global_batch_size: {self.global_batch_size} is no multiple of micro_batch_size x devices x "
                f"num_nodes = {at_once}; nearest: {max(at_once, round(self.global_batch_size / at_once) * at_once)}"
            )
        if not (self.max_tokens or self.max_steps or self.max_epochs):
            raise ValueError("max_tokens: one of max_tokens, max_steps and max_epochs must be set (the schedule's end)")
        if self.device == "cpu" and self.precision == "16-mixed":
            raise ValueError("precision: 16-mixed needs a GPU; on device: cpu take 32-true")
        if self.device == "mps" and self.precision != "32-true":
            raise ValueError(f"precision: {self.precision} is not supported on device: mps; take 32-true")
        if self.optimizer.name == "adamw8bit" and self.device == "cpu":
            raise ValueError("optimizer.name: adamw8bit needs a GPU; on device: cpu take adamw")
        if self.strategy == "fsdp" and self.device == "mps":
            raise ValueError("strategy: fsdp needs more than one device, and mps is one; take auto")
        if self.strategy == "fsdp" and self.precision == "16-mixed":
            raise ValueError("strategy: fsdp does not go with precision: 16-mixed; take bf16-mixed, or ddp")
        if self.strategy == "fsdp" and self.optimizer.name == "adamw8bit":
            raise ValueError("strategy: fsdp cuts the blocks that adamw8bit scales; take optimizer.name: adamw, or ddp")
        if self.strategy == "fsdp" and self.optimizer.name == "muon":
            raise ValueError("strategy: fsdp cuts matrices that muon needs whole; take optimizer.name: adamw, or ddp")
        return self


# --- evaluate, export -------------------------------------------------------------------------------------------------


class Evaluate(Section):
    watch: str = Field(description="file or folder whose content DVC watches for this stage (see dvc.yaml)")
    device: Literal["auto", "cpu", "cuda", "mps"]
    devices: Positive = Field(description="GPUs that share the scoring; the figures are the same for any number")
    batch_size: Positive = Field(description="windows in one forward pass")
    stride: Positive | None = Field(description="sliding window: tokens scored per window; null: block by block")
    train_sample_tokens: Annotated[int, Field(ge=0)] = Field(description="training tokens scored too; 0: none")
    prompts: list[Annotated[str, Field(min_length=1)]] = Field(
        min_length=1, description="beginnings that the model continues"
    )
    temperatures: list[Annotated[float, Field(ge=0)]] = Field(min_length=1, description="0: greedy")
    samples_per_prompt: Positive = Field(description="stories for each prompt and temperature above 0")
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_new_tokens: Positive = Field(description="tokens of a story at most; the model's context bounds it too")
    seed: int = Field(description="of the first sample; the next ones count up")
    ngram_order: Positive = Field(description="order of the Kneser-Ney reference model")
    reference_bytes: Annotated[int, Field(ge=0)] = Field(description="training text for n-grams; 0: no references")
    memorisation_bytes: Annotated[int, Field(ge=0)] = Field(description="training text searched for overlaps; 0: none")
    lm_eval_tasks: list[str] = Field(description="lm-eval task files; needs the extra lm-eval")

    @model_validator(mode="after")
    def _tasks_are_watched(self) -> Self:
        for task in self.lm_eval_tasks:
            if not PurePath(task).is_relative_to(self.watch):
                raise ValueError(
                    f"watch: {self.watch} does not hold the task {task}, so an edit of it would not be noticed; "
                    f"set the folder of the tasks and their data, as in -S evaluate.watch={PurePath(task).parent}"
                )
        return self


class Export(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$", description="the model's name: on its card, of GGUF files")
    dtype: Literal["float32", "bfloat16", "float16"]
    max_shard_bytes: Positive
    gguf: list[Literal["f32", "f16", "q8_0"]] = Field(description="GGUF files to write besides; [] for none")
    licence: str = Field(min_length=1, description="the model's licence (SPDX), for the card")


class Params(Section):
    download: Download
    clean: Clean
    tokenizer: Tokenizer
    model: Model
    train: Train
    evaluate: Evaluate
    export: Export

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if self.model.vocab_size is not None and (self.tokenizer.vocab_size or 0) > self.model.vocab_size:
            raise ValueError(
                f"model.vocab_size: {self.model.vocab_size} is less than tokenizer.vocab_size = "
                f"{self.tokenizer.vocab_size}; set it to at least that, or to null"
            )
        if self.train.block_size > self.model.block_size:
            raise ValueError(
                f"train.block_size: {self.train.block_size} is more than the model's context; "
                f"allowed: 1 to model.block_size = {self.model.block_size}"
            )
        if self.export.gguf:
            try:
                _ = self.model.gguf_architecture
            except ValueError as error:
                raise ValueError(f"model.{error}") from None
            if self.tokenizer.kind not in ("train", "adopt"):
                raise ValueError(
                    f"export.gguf: llama.cpp has no tokenizer of kind {self.tokenizer.kind}; take [] or kind: train"
                )
        if self.evaluate.stride is not None and self.evaluate.stride > self.train.block_size:
            raise ValueError(
                f"evaluate.stride: {self.evaluate.stride}; allowed: 1 to train.block_size = {self.train.block_size}"
            )
        return self


# --- reading ----------------------------------------------------------------------------------------------------------


def load(path: Path | str = "params.yaml") -> Params:
    """Read and validate the whole file; raise UserError with one line for each thing wrong."""
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not here; run from the project's folder") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no mapping of sections; allowed: {', '.join(Params.model_fields)}")
    return validate(raw, str(path))


def validate(raw: dict[str, Any], origin: str = "params.yaml") -> Params:
    """Validate parameters that were already read; `origin` names them in an error."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(dict(problem), raw) for problem in error.errors(include_url=False)]
        raise UserError("\n".join([f"{origin}:", *(f"  {line}" for line in lines)])) from None


def leaves(params: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted key, value) of the parameters, sections opened up."""
    for name in type(params).model_fields:
        value = getattr(params, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _explain(problem: dict[str, Any], raw: dict[str, Any]) -> str:
    source = (raw.get("download") or {}).get("source") if isinstance(raw.get("download"), dict) else None
    location = [part for i, part in enumerate(problem["loc"]) if not (i == 1 and part == source)]
    path = ".".join(str(part) for part in location)
    kind, value, context = problem["type"], problem.get("input"), problem.get("ctx", {})
    if kind == "extra_forbidden":
        known = _known_names(location[:-1], source)
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = (
            f"did you mean {'.'.join([*map(str, location[:-1]), near[0]])}?" if near else f"known: {', '.join(known)}"
        )
        return f"{path} = {value!r}: no such parameter; {hint}"
    if kind == "missing":
        return f"{path}: missing; every parameter stands in params.yaml (configs/ has the defaults)"
    if kind == "value_error":  # our own rules: they name the key within the section and what is allowed
        message = str(context["error"])
        name, _, rest = message.partition(": ")
        if rest and " " not in name:
            return f"{path}.{name}: {rest}" if path else message
        return f"{path} = {value!r}: {message}"
    if kind == "literal_error":
        near = difflib.get_close_matches(str(value), str(context["expected"]).replace("'", "").split(), n=1)
        hint = f"; did you mean {near[0].rstrip(',')}?" if near else ""
        return f"{path} = {value!r}; allowed: {context['expected']}{hint}"
    if kind == "union_tag_invalid":
        return f"{path}.source = {context['tag']!r}; allowed: {context['expected_tags']}"
    shown = f" = {value!r}" if not isinstance(value, dict) else ""
    return f"{path}{shown}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _known_names(location: list[Any], source: str | None) -> list[str]:
    model: Any = Params
    for part in location:
        if part == "download":
            sources = {get_args(m.model_fields["source"].annotation)[0]: m for m in get_args(get_args(Download)[0])}
            model = sources.get(source or "", Bundled)
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if get_origin(annotation) is not None:
            annotation = next((a for a in get_args(annotation) if isinstance(a, type)), None)
        model = annotation
    return list(model.model_fields) if hasattr(model, "model_fields") else []


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
