"""What can happen in the bundled stories: what is wished for, what goes wrong, and what helps.

Every row holds only things that fit together, so a plot that takes one row cannot mend a torn coat with glue.
`[big|small]` stands for one of its alternatives (see `craft`). To extend the stories, add rows.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fear:
    """A wish that a fear stands in front of, and the advice that helps."""

    noun: str  # what the wish is about
    of: str
    wish: str
    worry: str
    attempt: str
    advice: str
    deed: str
    reward: str


FEARS = (
    Fear(
        "tent", "the dark", "sleep in the tent in the yard", "Is there something in there?",
        "put one foot in the tent and ran back",
        "The dark is only the day with the lamp turned off. Take this [little|small] lamp with you",
        "took the lamp and looked into every corner of the tent. There was nothing to be afraid of",
        "The tent was cozy, and the stars [above it|over it] were like tiny lamps",
    ),
    Fear(
        "lake", "deep water", "swim in the lake", "What if the water pulls me down?",
        "put one toe in the lake and jumped back", "Hold my hand and kick your legs. We will stay close to the shore",
        "held on [tight|hard] and kicked and kicked. Soon the water [carried|held] them both",
        "The lake felt [cool|soft|fresh], and swimming was like flying",
    ),
    Fear(
        "slide", "high places", "go down the big slide", "It is so far down!",
        "climbed three steps of the slide and came back",
        "Do not look down. Look up at the [clouds|sky] and count the steps",
        "looked up, counted ten steps and sat down at the top. Then, whoosh",
        "The slide was as fast as the wind",
    ),
    Fear(
        "dog", "big dogs", "play with the neighbor's dog", "What if it bites me?",
        "took one step to the dog and hid behind a tree",
        "This dog is kind. Let it smell your hand first, and do not run",
        "held out one hand and stood very still. The dog [sniffed at it|licked it] and wagged its tail",
        "The dog was as soft as a pillow",
    ),
    Fear(
        "bed", "thunder", "sleep in the new big bed", "Will the thunder come and get me?",
        "got into the bed, but jumped out at the first boom",
        "Thunder is only the clouds bumping their heads. Count slowly after each flash",
        "counted after each flash. One, two, three, and every boom was [farther away|softer than the last]",
        "The bed was warm, and the rain sang a [soft|sleepy|gentle] song",
    ),
    Fear(
        "song", "big crowds", "sing a song at the school show", "What if I forget the words?",
        "looked at all the chairs, forgot the song and ran off the stage",
        "Find one kind face and sing the song for that face only",
        "found one kind face and sang from the [first|very first] word to the last",
        "Everyone clapped, and the song was the best of the show",
    ),
    Fear(
        "bike", "falling", "ride the new bike", "What if I fall and hurt my knee?",
        "sat on the bike and got off again", "I will hold the seat until you tell me to let go",
        "pushed the pedals round and round. The bike rolled [straight|safely] down the path",
        "The bike was fast, and the wind [felt good|smelled of summer]",
    ),
    Fear(
        "flowers", "bees", "pick the pink flowers in the garden", "The bees will sting me!",
        "walked up to the flowers and ran away",
        "Bees are busy with their lunch. Move slowly, and they will not mind you",
        "moved slowly and picked one flower at a time. The bees just hummed",
        "The flowers looked [lovely|bright] in a [glass|blue] jar",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Accident:
    """Something dear to an elder that breaks, and what mends it."""

    noun: str
    look: str
    game: str  # what the hero was doing
    crash: str
    mend: str
    after: str


ACCIDENTS = (
    Accident("vase", "[blue|tall|old]", "[ran|raced] through the living room", "The vase fell and broke in two",
             "put the pieces together with glue", "There was a thin line in the vase, but it stood again"),
    Accident("cup", "[white|painted|pretty]", "danced in the kitchen", "The cup fell and lost its handle",
             "stuck the handle on with glue", "The cup looked almost like new"),
    Accident("coat", "[warm|gray|long]", "played tiger with the coat on", "The coat got stuck on a nail and tore",
             "sewed up the hole with a needle and thread", "The coat had a small seam now, and it was warm again"),
    Accident("book", "[old|thick|funny]", "pulled the book from the shelf too fast", "A page of the book tore out",
             "put the page back with clear tape", "The book could be read again from start to end"),
    Accident("fence", "[white|wooden|low]", "rode a bike too fast in the yard", "One board of the fence broke",
             "put in a new board with a hammer and nails", "The fence was straight and strong again"),
    Accident("picture", "[big|bright|small]", "threw a ball in the hall", "The picture fell, and its frame came apart",
             "put the frame together with four small nails", "The picture hung on the wall again"),
    Accident("scarf", "[red|woolen|striped]", "used the scarf to pull a sled", "The scarf caught and lost its end",
             "knitted a new end with [red|soft|thick] wool", "The scarf was even longer than before"),
    Accident("chair", "[old|rocking|green]", "jumped up and down on the chair", "A leg of the chair came off",
             "put the leg back with a long screw", "The chair stood on four legs again"),
    Accident("basket", "[round|brown|big]", "sat in the basket to play boat", "The bottom of the basket fell out",
             "wove a new bottom with thin twigs", "The basket could hold apples again"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rescue:
    """A stranger in trouble, where it happens, and what gets it out."""

    noun: str
    place: str
    sound: str
    trouble: str
    hopeless: str
    need: str  # a thing that helps
    deed: str
    thanks: str


RESCUES = (
    Rescue("bird", "in the park", "a [sad|thin|tiny] chirp", "A baby bird had fallen out of its nest",
           "It was too small to fly", "a ladder", "climbed up the ladder and put the bird back in its nest",
           "sang a [sweet|pretty|happy] song"),
    Rescue("kitten", "near the old oak", "a [soft|long|sad] meow", "A kitten sat at the very top of the tree",
           "It had climbed up, but it did not know how to climb down", "a basket on a rope",
           "pulled the basket up to the kitten, and it jumped in", "purred and purred"),
    Rescue("turtle", "on the path", "a [low|tired] groan", "A turtle was lying on its back",
           "Its legs kicked the air, but it could not turn over", "a strong stick",
           "pushed the stick under the shell and turned the turtle over", "nodded its wise old head"),
    Rescue("duckling", "at the pond", "a [small|sad|lost] peep", "A duckling was all alone",
           "It could not find its mother in the tall reeds", "some bread crumbs",
           "laid a line of crumbs and led the duckling to its mother", "flapped its tiny wings"),
    Rescue("butterfly", "in the garden", "a [soft|quick] flutter", "A butterfly was caught in a spider web",
           "The more it moved, the more it stuck", "a thin twig", "cut the web with the twig and set it free",
           "danced around in the air"),
    Rescue("frog", "by the road", "a [sad|dry|weak] croak", "A frog had lost its way to the pond",
           "The sun was hot, and its skin was dry", "a bucket of water",
           "let the frog sit in the bucket and carried it to the pond", "made a big splash"),
    Rescue("lamb", "on the hill", "a [loud|sad|scared] baa", "A lamb had its leg stuck in the fence",
           "It pulled and pulled, but the fence held it", "a long board",
           "pushed the wires apart with the board, and the lamb slipped out", "skipped three times in a ring"),
    Rescue("mouse", "in the barn", "a [tiny|scared] squeak", "A mouse had fallen into an empty milk can",
           "The walls were too smooth to climb", "a piece of string",
           "let the string down, and the mouse climbed up", "gave a happy little bow"),
    Rescue("fish", "at the beach", "a [small|quick] splash", "A fish was left in a tiny pool when the sea went out",
           "The pool was getting smaller in the sun", "a bucket", "carried the fish back to the sea in the bucket",
           "jumped high out of the waves"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Project:
    """Something to build, of what, how it fails at first, what was missing, and what it is good for."""

    noun: str
    why: str
    parts: tuple[str, ...]
    failure: str
    advice: str
    fix: str
    use: str


PROJECTS = (
    Project("birdhouse", "give the birds a warm home", ("boards", "nails", "paint", "a small roof"),
            "the walls came loose and it fell apart", "The corners need more nails",
            "put two nails in each corner", "A [blue|red|little] bird moved into the birdhouse"),
    Project("sand castle", "make a home for a king", ("wet sand", "shells", "a bucket", "a flag"),
            "a wave came and washed it away", "It is too close to the water",
            "built it again farther up the beach", "The sand castle stood until the sun went down"),
    Project("raft", "cross the pond", ("logs", "rope", "a long pole", "an old sheet"),
            "the logs rolled apart", "The rope must go around every log",
            "tied a good knot around every log", "The raft floated all the way across the pond"),
    Project("fort", "have a secret room", ("blankets", "chairs", "pillows", "a lamp"),
            "the roof fell in", "The roof needs something in the middle to hold it",
            "put a broom in the middle", "They told [funny|scary|long] stories in the fort until bedtime"),
    Project("wagon", "carry apples home", ("a box", "four wheels", "a rope", "nails"),
            "one wheel rolled away", "Each wheel needs a pin to hold it",
            "put a pin in each wheel", "The wagon carried [ten|twenty|a hundred] apples home"),
    Project("snowman", "have a friend in the yard", ("snow", "a carrot", "two buttons", "a hat"),
            "the head rolled off", "The biggest ball must be at the bottom",
            "put the biggest ball at the bottom and the smallest on top", "The snowman smiled at everyone who came by"),
    Project("swing", "fly up to the sky", ("a board", "strong rope", "a branch", "a little paint"),
            "it hung down on one side", "Both ropes must have the same length",
            "made both ropes the same", "They took turns on the swing until it was dark"),
    Project("bridge", "get over the stream with dry feet", ("stones", "planks", "sticks", "mud"),
            "the water pushed it over", "Put the heavy stones down first",
            "laid the heavy stones first", "Even the [ducks|sheep|neighbors] walked over the bridge"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RainyPlan:
    """A plan for outdoors, and what can be made of it indoors."""

    noun: str
    plan: str
    idea: str
    making: str
    fun: str


RAINY_PLANS = (
    RainyPlan("picnic", "have a picnic in the park", "We can have the picnic on the rug",
              "put a blanket on the rug and filled a basket with [bread|pies|cakes] and [apples|grapes|plums]",
              "ate and pretended that ants were coming"),
    RainyPlan("camp", "make a camp in the woods", "We can make a camp in the living room",
              "hung a sheet over [two|four] chairs and lit a [small|yellow|paper] lamp",
              "sat close together and told [funny|long|scary] stories"),
    RainyPlan("boat race",
              "have a boat race on the pond", "We can have the boat race in the bath",
              "filled the bath and made [big|little] waves with their hands",
              "raced their paper boats from one end to the other"),
    RainyPlan("treasure hunt", "go on a treasure hunt in the garden", "We can have a treasure hunt in the house",
              "drew a map and hid a box of [buttons|coins|nuts] under the [stairs|bed|table]",
              "followed the map from room to room"),
    RainyPlan("circus", "play circus on the grass", "Our circus can be in the kitchen",
              "laid a rope on the floor and put on [funny|silly|big] hats", "walked on the rope and bowed"),
    RainyPlan("zoo", "go to the zoo", "We can make a zoo of our own",
              "put the [lion|tiger], the [bear|wolf] and the [monkey|parrot] from the toy box in paper cages",
              "sold tickets and made all the animal sounds"),
    RainyPlan("bowling game",
              "have a bowling game in the yard", "We can have our bowling game in the hall",
              "stood [six|nine|ten] empty bottles in a row and made a ball from [socks|wool]",
              "rolled the ball and cheered at every crash"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plant:
    """What grows from a seed, step by step, and what becomes of it."""

    noun: str
    sign: str
    grown: str
    use: str


PLANTS = (
    Plant("sunflower", "a thick green stem", "It was taller than the [door|fence]", "gave its seeds to the birds"),
    Plant("pumpkin", "a long green vine", "It was as round as the moon", "made soup for all the neighbors"),
    Plant("strawberry plant", "three small leaves", "It was full of red berries", "shared the berries with everyone"),
    Plant("bean plant", "a thin green loop", "It climbed to the top of its pole", "cooked the beans for the family"),
    Plant("tomato plant", "two tiny leaves", "It was full of red tomatoes", "made sandwiches for the family"),
    Plant("rose", "a little red bud", "It smelled sweet like honey", "showed it to everyone who walked by"),
    Plant("carrot", "a soft green feather", "It was long and orange", "cut it up so that everyone got a crunchy bite"),
    Plant("apple tree", "a thin brown stick with one leaf", "After some years it was full of apples",
          "baked a pie for the whole street"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wait:
    """Something that takes its time, how hurry spoils it, and how it is when one waits."""

    noun: str
    start: str
    until: str
    hurry: str
    spoiled: str
    good: str


WAITS = (
    Wait("cake", "mixed eggs, flour and sugar for a [lemon|chocolate|honey] cake", "until the cake is brown",
         "opened the oven too soon", "The cake fell flat like a pancake", "The cake was high, soft and sweet"),
    Wait("picture", "painted a picture of [a boat|a horse|the sea|a castle]", "until the paint is dry",
         "picked the picture up too soon", "The wet paint ran down in long lines", "The picture was bright and clear"),
    Wait("jelly", "made a bowl of [red|green|orange] jelly", "until the jelly is cold",
         "put a spoon in too soon", "The jelly ran all over the table", "The jelly shook and did not spill a drop"),
    Wait("bread", "made a big loaf of bread", "until the bread has grown in its bowl",
         "put the bread in the oven too soon", "The bread came out as hard as a stone", "The bread was soft and warm"),
    Wait("clay pot", "made a clay pot with [stars|stripes|fish] on it", "until the clay is hard",
         "filled the clay pot with water too soon", "The clay pot turned back into mud",
         "The clay pot did not lose one drop of water"),
    Wait("ice pops", "poured [berry|apple|orange] juice into cups to make ice pops", "until the ice pops are hard",
         "pulled at the sticks too soon", "The juice went all over the floor", "The ice pops were cold and sweet"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Task:
    """Something that nobody can do alone."""

    noun: str
    wish: str
    alone: str
    together: str
    result: str


TASKS = (
    Task("pumpkin", "bring the huge pumpkin home", "pushed the pumpkin, but it did not move", "pushed from one side",
         "the pumpkin rolled all the way home"),
    Task("boat", "get the old boat to the water", "pulled the boat, but it sat in the sand", "pulled at the rope",
         "the boat slid into the water with a splash"),
    Task("apples", "pick the apples at the top of the tree", "jumped, but the apples were too high",
         "made a tower, one on top of the other", "the apples fell down like red rain"),
    Task("log", "clear the log from the road", "kicked the log, but it was too heavy", "pushed with a strong pole",
         "the log rolled off into the grass"),
    Task("cart", "get the cart out of the mud", "pushed the cart, but its wheels sank deeper", "laid sticks under it",
         "the cart jumped out of the mud"),
    Task("bell", "ring the big bell on the hill", "pulled the rope of the bell, but it was stiff", "hung on the rope",
         "the bell sang out over the whole valley, ding dong"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Skill:
    """Something that takes practice."""

    noun: str
    wish: str
    failure: str
    tip: str
    small_win: str
    success: str


SKILLS = (
    Skill("skates", "glide on the new skates", "slipped and sat down hard", "Bend your knees and take small steps",
          "stood on the skates for a whole minute", "glided in a big ring on the skates"),
    Skill("whistle", "blow a tune on the wooden whistle", "made a wet, windy sound", "Blow softly and close your lips",
          "got one clear note from the whistle", "played a whole song on the whistle"),
    Skill("rope", "jump over the long rope", "got the rope around both feet", "Listen to the rope and jump at its tap",
          "jumped the rope two times in a row", "jumped the rope [twenty|thirty|fifty] times"),
    Skill("shoes", "tie the laces of the new shoes", "made a knot like a ball of wool",
          "Make two rabbit ears and cross them", "tied one of the shoes", "tied both shoes and ran around the house"),
    Skill("hoop", "spin the big hoop", "let the hoop fall down at once", "Move your hips in a small ring",
          "made the hoop go around three times", "made the hoop spin and spin"),
    Skill("stilts", "walk on the tall stilts", "fell off into the soft grass", "Look ahead and not at your feet",
          "took two steps on the stilts", "walked on the stilts all around the yard"),
    Skill("piano", "play a song on the piano", "hit all the wrong keys", "Play it slowly, one hand at a time",
          "played the first line on the piano", "played the song on the piano without a mistake"),
)  # fmt: skip
