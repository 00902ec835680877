"""The small world of the bundled stories: who lives in it, what they play with and where they can go.

A place holds only what fits it, so no plot can put a crab in the woods. `[big|small]` stands for one of its
alternatives (see `craft`). To extend the world, add rows.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pronouns:
    """How one speaks of somebody."""

    he: str
    him: str
    his: str


HE = Pronouns("he", "him", "his")
SHE = Pronouns("she", "her", "her")


@dataclass(frozen=True, slots=True)
class Being:
    """A character; as text, its name."""

    name: str
    kind: str  # boy, girl, fox, ...
    pronouns: Pronouns

    def __str__(self) -> str:
        return self.name

    @property
    def is_child(self) -> bool:
        return self.kind in ("boy", "girl")

    @property
    def full(self) -> str:
        """The name with the kind, where the name alone does not say it: Lily, Pip the fox."""
        return self.name if self.is_child else f"{self.name} the {self.kind}"

    @property
    def he(self) -> str:
        return self.pronouns.he

    @property
    def him(self) -> str:
        return self.pronouns.him

    @property
    def his(self) -> str:
        return self.pronouns.his

    @property
    def He(self) -> str:
        return self.pronouns.he.capitalize()

    @property
    def His(self) -> str:
        return self.pronouns.his.capitalize()

    @property
    def call(self) -> str:
        """How one speaks to somebody: Mom, Grandpa, Lily."""
        return self.name.capitalize()


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CHILD_NAMES = {
    HE: _words("Tom Tim Ben Max Sam Leo Jack Noah"),
    SHE: _words("Lily Mia Anna Sue Emma Zoe Lucy Ella"),
}
ANIMAL_NAMES = {
    HE: _words("Benny Rusty Pip Bobo"),
    SHE: _words("Coco Daisy Poppy Honey"),
}
ANIMAL_KINDS = _words("rabbit fox mouse squirrel hedgehog bear raccoon badger pig kitten puppy lamb monkey")
ELDERS = tuple(
    Being(word, word, pronouns)
    for word, pronouns in zip(("mom", "dad", "grandma", "grandpa"), (SHE, HE) * 2, strict=True)
)

COLORS = "red|blue|green|yellow|orange|purple|pink|white|brown"
FOODS = (
    "[warm|fresh] bread",
    "[sweet|red|ripe] berries",
    "[red|green|sweet] apples",
    "[hot|tomato|vegetable] soup",
    "[yellow|soft] cheese",
    "[little|warm|round] pancakes",
    "[chocolate|honey|oat] cookies",
    "[juicy|ripe] pears",
    "[ripe|sweet] plums",
    "[crunchy|sweet] carrots",
    "[cold|fresh|warm] milk",
    "[sweet|golden] honey",
    "[big|green] grapes",
    "[salty|crunchy] nuts",
    "[cheese|egg|jam] sandwiches",
    "[berry|apple|lemon] cake",
)


@dataclass(frozen=True, slots=True)
class Toy:
    """Something small to play with, to lose and to share."""

    noun: str
    looks: tuple[str, ...]
    play: str
    played: str


TOYS = (
    Toy("ball", ("red", "blue", "bouncy", "shiny", "striped"), "bounce it", "bounced it up and down"),
    Toy("doll", ("pretty", "soft", "little", "tiny"), "hug it and sing to it", "danced with it"),
    Toy("teddy bear", ("soft", "brown", "fluffy", "old"), "hug it and talk to it", "made it dance"),
    Toy("toy car", ("red", "fast", "shiny", "green"), "race it over the floor", "raced it round and round"),
    Toy("toy boat", ("white", "wooden", "little", "blue"), "carry it and dream of the sea", "played captain with it"),
    Toy("kite", ("yellow", "long", "red", "purple"), "fly it", "made it fly up and down"),
    Toy("toy train", ("wooden", "green", "little", "blue"), "push it and call choo choo", "pushed it along the ground"),
    Toy("drum", ("round", "loud", "little", "red"), "tap it", "tapped it, boom boom boom"),
    Toy("toy robot", ("silver", "funny", "small", "gray"), "make it walk", "made it walk like a king"),
    Toy("spinning top", ("wooden", "striped", "tiny", "golden"), "spin it", "made it spin and hum"),
    Toy("toy horse", ("brown", "wooden", "white", "spotted"), "make it jump", "made it run and jump"),
    Toy("puppet", ("silly", "little", "striped", "green"), "make it talk", "made it tell jokes"),
    Toy("toy plane", ("silver", "blue", "paper", "light"), "make it fly", "made it zoom through the air"),
    Toy("whistle", ("tin", "shiny", "wooden", "orange"), "blow it", "blew it like a bird"),
)


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a lost thing can lie, why one cannot just take it, and how one gets it all the same."""

    where: str
    trouble: str
    fix: str


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere to go, with what is seen there, where things get lost, and who might have seen it."""

    noun: str
    preposition: str
    sights: tuple[str, ...]
    spots: tuple[Spot, ...]
    animals: tuple[str, ...]

    @property
    def to(self) -> str:
        return f"to the {self.noun}"

    @property
    def at(self) -> str:
        return f"{self.preposition} the {self.noun}"

    @property
    def At(self) -> str:
        return f"{self.preposition.capitalize()} the {self.noun}"


_HIGH = Spot("up in a tree", "it was too high to reach", "shook the [tree|branch] until it fell down")
_BUSH = Spot("in a thorny bush", "the thorns were sharp", "put on [thick|warm] gloves and took it out")
_WATER = Spot("on the water", "it was too far from the [bank|shore]", "pulled it back with a long [stick|branch]")
_MUD = Spot("in a [deep|big] mud hole", "the mud was sticky", "laid a board over the mud and picked it up")
_LOG = Spot("under a [fallen|heavy] log", "the log was too heavy for one", "rolled the log away together")

PLACES = (
    Place(
        "park",
        "in",
        (
            f"[{COLORS}] flowers",
            "two [gray|white|fat] pigeons",
            "a man with a [big|small|black|spotted] dog",
            "a [tall|round|splashing] fountain",
            "a [boy|girl|woman] on a [red|blue|green] bike",
            "an old [man|woman] on a bench",
        ),
        (Spot("under a bench", "it was too far back", "pushed it out with a long [stick|branch]"), _HIGH, _BUSH),
        ("squirrel", "pigeon", "puppy"),
    ),
    Place(
        "beach",
        "at",
        (
            "a [white|red|big|little] boat",
            "[pink|white|striped|tiny] shells",
            "a [funny|little|red] crab",
            "[big|small|blue|foamy] waves",
            "three [white|loud|hungry] gulls",
            "a [tall|small|round] sand castle",
        ),
        (
            _WATER,
            Spot("between two rocks", "the gap was too thin for a hand", "hooked it out with a bent [stick|wire]"),
            Spot("deep in the sand", "only one corner of it could be seen", "dug it out with a [little|red] shovel"),
        ),
        ("crab", "gull", "turtle"),
    ),
    Place(
        "forest",
        "in",
        (
            "a [red|brown|tall] mushroom",
            "an [old|enormous] tree",
            "a [shy|young|brown] deer",
            "[wild|red|blue] berries",
            "a [thin|clear|tiny] stream",
            "a [gray|sleepy|wise] owl",
        ),
        (_LOG, _HIGH, _BUSH),
        ("owl", "deer", "woodpecker"),
    ),
    Place(
        "pond",
        "at",
        (
            "a [green|fat|loud] frog",
            "two [white|yellow|brown] ducks",
            "[white|pink|yellow] water lilies",
            "a [blue|green|red] dragonfly",
            "[little|silver|orange] fish",
            "a [long|mossy|wet] log",
        ),
        (_WATER, _MUD, Spot("in the tall reeds", "the ground there was wet", "put on [rubber|tall] boots and got it")),
        ("duck", "frog", "swan"),
    ),
    Place(
        "farm",
        "on",
        (
            "a [brown|spotted|white] cow",
            "five [fluffy|yellow|tiny] chicks",
            "a [red|big|noisy] tractor",
            "a [fat|pink|muddy] pig",
            "[golden|tall|dry] hay",
            "a [gray|kind|stubborn] donkey",
        ),
        (
            _MUD,
            Spot("under the hay", "there was so much hay", "moved the hay away with a [big|wide] rake"),
            Spot("behind the barn door", "the door was stuck", "pulled the door together, one, two, three"),
        ),
        ("hen", "goat", "cow"),
    ),
    Place(
        "meadow",
        "in",
        (
            f"a [{COLORS}] butterfly",
            "[white|yellow|tiny] daisies",
            "a [busy|fat|fuzzy] bee",
            "[tall|green|soft] grass",
            "a [green|big|tiny] grasshopper",
            "a [red|spotted] ladybug",
        ),
        (
            Spot("in a deep hole", "no arm was long enough", "let down a [string|rope] with a hook and pulled it up"),
            _LOG,
            _BUSH,
        ),
        ("mole", "butterfly", "sheep"),
    ),
)
