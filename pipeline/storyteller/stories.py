"""The bundled corpus: short stories for small children, made up by chance from a small world, the same everywhere.

`tell(seed, index)` is one story; `stories(count, seed)` is a collection of distinct ones. Every story knows how many
bits of chance went into it, so a model's loss on them can be compared with the least that is possible. A plot is a
function that tells a story (`plots_*`), in sentences built by `craft`, about the rows of `world` and
`events`. To add a plot, write the function and name it in PLOTS.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.storyteller import plots_home as home
from pipeline.storyteller import plots_outside as outside
from pipeline.storyteller import plots_together as together
from pipeline.storyteller.craft import Telling

PLOTS: tuple[Callable[[Telling], str], ...] = (
    outside.lost_toy,
    outside.fear,
    outside.rescue,
    outside.race,
    outside.finder,
    together.sharing,
    together.building,
    together.new_friend,
    together.teamwork,
    together.sick_friend,
    together.practice,
    home.mistake,
    home.rainy_day,
    home.plant,
    home.party,
    home.patience,
    home.tidying,
    home.new_food,
)


@dataclass(frozen=True)
class Story:
    """A story: paragraphs separated by an empty line, and what its making cost in chance.

    `bits` is -log2 of the probability of the choices made. Different choices can lead to the same text, so averaged
    over stories it bounds the text's entropy from above.
    """

    text: str
    bits: float
    plot: str = ""  # the name of its function: lost_toy
    about: str = ""  # the word that stands in the first paragraph and in the last: kite


def tell(seed: int, index: int) -> Story:
    """Return story number `index` of the collection `seed`; it depends on no other story."""
    telling = Telling(seed, index)
    plot = telling.pick(PLOTS)
    about = plot(telling)
    return Story(telling.text, telling.bits, plot.__name__, about)


def stories(count: int, seed: int) -> Iterator[Story]:
    """Yield `count` stories with distinct texts: those of the collection `seed` in order, repeats left out."""
    told: set[bytes] = set()  # 8 bytes a story: enough to tell millions apart, and small
    index = 0
    while len(told) < count:
        story = tell(seed, index)
        index += 1
        key = hashlib.sha256(story.text.encode()).digest()[:8]
        if key not in told:
            told.add(key)
            yield story
