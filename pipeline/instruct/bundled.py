"""Source `bundled`: instructions and dialogues made up by the project's own storyteller."""

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.download.source import Document, File, Source
from pipeline.params.instruct import InstructBundled
from pipeline.storyteller.instructions import instructions


class BundledConversations(Source):
    description = "the bundled storyteller's instructions"
    card = "instructions by the generator that the project contains, under the project's licence"

    def __init__(self, wanted: InstructBundled, folder: Path) -> None:
        super().__init__(wanted, folder)
        origin = "pipeline/storyteller/instructions.py"
        self.manifest = {"origin": origin, "seed": wanted.seed, "licence": "as this project"}

    def files(self) -> list[File]:
        return [File("the instructions", None, {}, self._documents)]

    def _documents(self) -> Iterator[Document]:
        for number, made in enumerate(instructions(self.wanted.conversations, self.wanted.seed), start=1):
            turns = {"messages": made.messages, "constraints": made.constraints}
            record = turns if made.messages else {"text": made.text}
            yield Document(json.dumps({"place": f"number {number}", "record": record}), "storyteller")
