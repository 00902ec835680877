"""Source `bundled`: stories made up by the project's own storyteller."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.download.source import Document, File, Source
from pipeline.params.download import Bundled
from pipeline.storyteller.stories import stories


class BundledStories(Source):
    description = "the bundled storyteller"
    card = "stories told by the generator that the project contains, under the project's licence"

    def __init__(self, wanted: Bundled, folder: Path) -> None:
        super().__init__(wanted, folder)
        origin = "pipeline/storyteller/stories.py"
        self.manifest = {"origin": origin, "seed": wanted.seed, "licence": "as this project"}

    def files(self) -> list[File]:
        return [File("the stories", None, {}, self._documents)]

    def _documents(self) -> Iterator[Document]:
        for story in stories(self.wanted.documents, self.wanted.seed):
            yield Document(story.text, "storyteller", bits=story.bits)
