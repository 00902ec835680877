"""Source `huggingface`: a data set of the Hugging Face Hub at one commit: whole files, or streamed for a part of it."""

import fnmatch
import io
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import huggingface_hub

from pipeline import console, hub
from pipeline.documents.reading import kind_of
from pipeline.download import url
from pipeline.download.source import File, Source, as_regex, sha256
from pipeline.errors import UserError
from pipeline.params.download import HuggingFace

_STREAM_BLOCK = 8 * 2**20  # of a file read in part
T = TypeVar("T")


class HubDataset(Source):
    """Where a sample or a bound is asked for, files are streamed and not fetched whole."""

    def __init__(self, wanted: HuggingFace, folder: Path) -> None:
        super().__init__(wanted, folder)
        self._streamed = bool(wanted.max_documents or wanted.max_bytes or wanted.sample_fraction < 1)

    def files(self) -> list[File]:
        repo, revision = str(self.wanted.repo), self.wanted.revision
        api = huggingface_hub.HfApi()
        info = self._asked(partial(api.dataset_info, repo, revision=revision, files_metadata=True))
        self._commit = str(info.sha)
        card = info.card_data.to_dict() if info.card_data else {}
        self._configs = {entry.get("config_name"): entry for entry in card.get("configs") or []}
        self._siblings = sorted(info.siblings or [], key=lambda sibling: sibling.rfilename)
        stated = card.get("license")
        licence = self.wanted.licence or (", ".join(stated) if isinstance(stated, list) else stated)
        self.manifest = {"origin": repo, "revision": self._commit, "licence": licence}
        self.dataset, self.description = repo, f"the Hugging Face Hub: {repo}"
        self.card = f"[{repo}](https://huggingface.co/datasets/{repo}) at {self._commit}"
        self.card += f", licence {licence}" if licence else ""
        splits = sorted(self.wanted.splits, reverse=True)  # val before train
        return [file for split in splits for file in self._of_split(split, self.wanted.splits[split])]

    def _of_split(self, split: str, pattern: str) -> Iterator[File]:
        """The files of the configuration `config` whose split, as the card declares it, or path matches the glob."""
        repo = self.wanted.repo
        found = [sibling for sibling in self._matching(pattern) if kind_of(sibling.rfilename)[0]]
        if not found:
            known = ", ".join(s.rfilename for s in self._siblings[:20])
            declared = f"; its card declares the configurations {', '.join(self._configs)}" if self._configs else ""
            where = f" of config {self.wanted.config!r}" if self.wanted.config else ""
            raise UserError(
                f"download.splits: no file{where} of a known type in {repo} matches {pattern!r}; "
                f"it holds {known}{declared}"
            )
        for sibling in found:
            name = sibling.rfilename
            entry = {"origin": f"hf://datasets/{repo}@{self._commit}/{name}", "bytes": sibling.size}
            entry |= {"sha256": sibling.lfs.sha256} if sibling.lfs else {}
            yield self.file(name, partial(self._open, name, entry), entry, source=repo, split=split)

    def _matching(self, pattern: str) -> list[Any]:
        """By the card's declaration of the configuration if there is one, else below the folder of that name."""
        config = self.wanted.config
        declared = _data_files(self._configs[config]) if config in self._configs else {}
        if not declared:
            prefix = f"{config}/" if config else ""
            patterns = (prefix + pattern, prefix + pattern.removeprefix("**/"))
            return [s for s in self._siblings if any(fnmatch.fnmatchcase(s.rfilename, p) for p in patterns)]
        of_split = {
            split: [
                s
                for s in self._siblings
                if any(re.fullmatch(as_regex(glob, folders=True), s.rfilename) for glob in globs)
            ]
            for split, globs in declared.items()
        }
        by_split = [s for split, some in of_split.items() if fnmatch.fnmatchcase(split, pattern) for s in some]
        of_config = [s for some in of_split.values() for s in some]
        return by_split or [s for s in of_config if fnmatch.fnmatchcase(s.rfilename, pattern)]

    def _open(self, name: str, entry: dict[str, Any]) -> AbstractContextManager[IO[bytes]]:
        repo = str(self.wanted.repo)
        if self._streamed:
            system = huggingface_hub.HfFileSystem()
            path = f"datasets/{repo}@{self._commit}/{name}"
            opened = self._asked(lambda: system.open(path, "rb", block_size=_STREAM_BLOCK))
            return cast(AbstractContextManager[IO[bytes]], _Patient(opened, self._asked))
        fetch = partial(huggingface_hub.hf_hub_download, repo, name, repo_type="dataset", revision=self._commit)
        whole = Path(self._asked(fetch))
        digest = sha256(whole)
        if entry.setdefault("sha256", digest) != digest:
            raise UserError(f"{repo}/{name}: its sha256 is {digest}, the Hub gives {entry['sha256']}; delete {whole}")
        return whole.open("rb")

    def _asked(self, ask: Callable[[], T]) -> T:
        """Ask the Hub, again after a pause when it fails in a way that may pass; other failures in words."""
        repo, revision = self.wanted.repo, self.wanted.revision
        what = f"download.repo = {repo!r}" + (f" at download.revision = {revision!r}" if revision else "")
        for pause in (*url.PAUSES, None):
            try:
                return ask()
            except Exception as error:
                if (said := hub.words(error, "take download=bundled or download=local")) is None:
                    raise
                if pause is None or not hub.may_pass(error):
                    raise UserError(f"{what}: {said}") from None
                console.warn(f"{repo}: {said}; trying again in {pause:g} s")
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")


class _Patient(io.RawIOBase):
    """A file of the Hub that is read in ranges; a range that breaks off is asked for again."""

    def __init__(self, file: Any, asked: Callable[[Callable[[], Any]], Any]) -> None:
        self._file, self._asked = file, asked

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._asked(lambda: self._file.read(len(buffer)))
        buffer[: len(block)] = block
        return len(block)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


def _data_files(config: dict[str, Any]) -> dict[str, list[str]]:
    """The globs of each split of a configuration as a card declares it; {} where it names no files.

    `data_files` is a glob, a list of globs, a mapping of split to globs, or a list of {split, path}; see
    https://huggingface.co/docs/hub/datasets-manual-configuration.
    """
    files, folder = config.get("data_files"), str(config.get("data_dir") or "").strip("/")
    if files is None:
        return {"train": [f"{folder}/**"]} if folder else {}
    if isinstance(files, dict):
        files = [{"split": split, "path": path} for split, path in files.items()]
    found: dict[str, list[str]] = {}
    for item in [files] if isinstance(files, str) else files:
        split, paths = (item.get("split", "train"), item["path"]) if isinstance(item, dict) else ("train", item)
        for path in [paths] if isinstance(paths, str) else paths:
            found.setdefault(split, []).append(f"{folder}/{path}" if folder else path)
    return found
