"""Section `download`: where the documents come from; one class a source."""

import re
from typing import Annotated, Literal, Self, Union
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from pipeline.params.section import Positive, Section, Seed


class Bounded(Section):
    """Documents of a source, or a part of them."""

    watch: str = Field(description="file or folder whose content DVC watches for this stage (see dvc.yaml)")
    max_documents: Positive | None = Field(description="documents to keep at most (of a val split: a tenth); null: all")
    max_bytes: Positive | None = Field(description="bytes of text to keep at most; null: all")
    sample_fraction: Annotated[float, Field(gt=0, le=1)] = Field(description="share of documents kept, by seeded hash")
    seed: Seed = Field(description="seed of the sample, and of the bundled stories")


class _Text(Section):
    text_column: str = Field(description="field of a jsonl or parquet record that holds the text")
    split: Literal[
        "auto", "separator", "separator_lines", "lines", "blank_lines", "wide_blank_lines", "lone_newlines", "whole"
    ] = Field(
        description="what ends a document of a plain text file: the separator; the separator alone on a line; "
        "each line; a blank line; two blank lines or more; a single line break (blank lines stand "
        "between paragraphs); nothing but the end of the file. auto: guessed, and the guess is reported"
    )
    separator: str = Field(min_length=1, description="what ends a document for split: separator (auto looks for it)")


class Bundled(Bounded):
    source: Literal["bundled"]
    documents: Positive = Field(description="stories to tell")


class LocalFiles(Section):
    path: Annotated[str, Field(coerce_numbers_to_str=True)] = Field(
        min_length=1,
        description="file, folder or glob: .jsonl, .parquet (of documents also .txt), each also .gz or .zst",
    )
    pattern: str = Field(min_length=1, description="which files of a folder, as a glob")


class HubFiles(Section):
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
            raise ValueError("repo: name the data set, as owner/name")
        return self


class UrlFiles(Section):
    urls: list[str] = Field(
        description="http(s) addresses of .jsonl, .parquet (of documents also .txt), also .gz, .zst, .zip, .tar"
    )
    sha256: list[str] = Field(description="expected sha256 of each file, in the order of urls; empty: not checked")
    max_download_bytes: Positive = Field(description="refuse a file larger than this, bytes")
    licence: str | None = Field(description="licence of the data, for the manifest and the model card")

    @model_validator(mode="after")
    def _urls_given(self) -> Self:
        if not self.urls:
            raise ValueError("urls: give at least one address, as in 'urls=[https://…]'")
        for url in self.urls:
            if not re.match(r"https?://[^/]", url):
                raise ValueError(f"urls: {url!r}; allowed: addresses that begin with http:// or https://")
            try:
                urlsplit(url)
            except ValueError as error:
                raise ValueError(f"urls: {url!r} is no address ({error})") from None
        if len(set(self.urls)) < len(self.urls):
            raise ValueError(f"urls: {max(self.urls, key=self.urls.count)!r} is given twice; name each file once")
        if self.sha256 and len(self.sha256) != len(self.urls):
            raise ValueError(f"sha256: {len(self.sha256)} given for {len(self.urls)} urls; one each, or none")
        return self


class WandbFiles(Section):
    artifact: str | None = Field(description="dataset artifact, as entity/project/name:alias")

    @model_validator(mode="after")
    def _artifact_given(self) -> Self:
        if not self.artifact or ":" not in self.artifact:
            raise ValueError("artifact: name it as entity/project/name:alias, e.g. team/moe-stories/clean:v3")
        return self


class Local(Bounded, _Text, LocalFiles):
    source: Literal["local"]


class HuggingFace(Bounded, _Text, HubFiles):
    source: Literal["huggingface"]


class Url(Bounded, _Text, UrlFiles):
    source: Literal["url"]


class Wandb(Bounded, WandbFiles):
    source: Literal["wandb"]


Download = Annotated[Union[Bundled, Local, HuggingFace, Url, Wandb], Field(discriminator="source")]
