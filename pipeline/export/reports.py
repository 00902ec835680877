"""What the reports of the other stages say of the data and the model, for the card: `read(Path("reports"))`."""

from pathlib import Path

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from pipeline.errors import UserError
from pipeline.params import Params


class _Download(BaseModel):
    card: str | None = None  # a Markdown sentence on the data, with its licence
    dataset: str | None = None  # its id on the Hub


class _Train(BaseModel):
    tokens: int | None = None


class _Val(BaseModel):
    loss: float | None = None
    perplexity: float | None = None
    bits_per_byte: float | None = None
    accuracy: float | None = None


class _Evaluate(BaseModel):
    val: _Val = _Val()


class Sample(BaseModel):
    prompt: str
    temperature: float
    text: str


class _Samples(BaseModel):
    stories: list[Sample] = []


class _Details(BaseModel):
    samples: _Samples = _Samples()


class Reports(BaseModel):
    """Of a report that is not there, and of a field that it lacks, None."""

    download: _Download = _Download()
    train: _Train = _Train()
    evaluate: _Evaluate = _Evaluate()
    details: _Details = _Details()

    def prompt(self, params: Params) -> str:
        """A prompt of one line in the corpus' language: the first of the evaluation's samples."""
        prompts = [sample.prompt for sample in self.details.samples.stories] + list(params.evaluate.prompts or [])
        return " ".join(prompts[0].split()) if prompts else "Once upon a time"


def read(folder: Path) -> Reports:
    """The reports in a folder; UserError for one that is damaged."""
    paths = {name: folder / f"{name}.json" for name in ("download", "train", "evaluate")}
    return _read(paths | {"details": folder / "plots" / "evaluate" / "details.json"})


def of_data(folder: Path) -> Reports:
    """What the reports say of the pretraining data alone, as `read` does."""
    return _read({"download": folder / "download.json"})


def _read(paths: dict[str, Path]) -> Reports:
    found = {}
    for name, path in paths.items():
        try:
            if path.is_file():
                found[name] = from_json(path.read_bytes())
        except ValueError as error:
            raise _damaged(path, str(error)) from None
    try:
        return Reports.model_validate(found)
    except ValidationError as error:
        name, *where = (str(part) for part in error.errors()[0]["loc"])
        raise _damaged(paths[name], ": ".join([".".join(where), error.errors()[0]["msg"]]).strip(": ")) from None


def _damaged(path: Path, reason: str) -> UserError:
    stage = "evaluate" if path.stem == "details" else path.stem
    return UserError(f"{path} is damaged ({reason}); write it again: uv run dvc repro -f {stage}")
