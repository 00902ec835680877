"""Plots of the bundled stories that happen at home: accidents, rainy days, seeds, secrets, patience.

A plot tells one whole story to a `Telling` and returns the word for what the story is about: it stands in the story's
first paragraph and in its last. Any variant of a sentence can follow any variant of the one before.
"""

from pipeline.storyteller.craft import AFTER, CHEERED, DAY, HAPPY, SAD, Telling, introduce, meal
from pipeline.storyteller.events import ACCIDENTS, PLANTS, RAINY_PLANS, WAITS
from pipeline.storyteller.world import COLORS, ELDERS, TOYS


def mistake(t: Telling) -> str:
    """Something dear breaks; the truth is hard to tell; it is mended together."""
    h, e, row = t.hero(), t.elder(), t.pick(ACCIDENTS)
    introduce(t, h)
    t.say(
        f"{h.His} {e} had a {row.look} {row.noun} and [loved it very much|took good care of it|had kept it for years].",
        f"At home there was a {row.look} {row.noun}. {h.His} {e} [loved it very much|had kept it for many years].",
    )
    t.paragraph()
    t.say(
        f"{DAY}, {h} forgot to be careful and {row.game}. [Crack|Oops|Oh no]! {row.crash}.",
        f"{DAY}, {h} [was alone in the room|felt wild|wanted some fun] and {row.game}. {row.crash}.",
    )
    t.say(
        f'"[What have I done|Oh, what now|This is bad]!" [whispered|said|thought] {h}.',
        f"{h}'s heart [beat fast|began to beat fast|sank].",
        f"{h} [stood very still|did not know what to do|wanted to cry].",
    )
    t.say(
        f"{h.He} [wanted|tried] to hide the {row.noun} [behind the door|under the bed|in a box], but that did not feel"
        " [right|good].",
        f'First {h.he} thought, "I can say that [the cat|the wind] did it." But that [would be a lie|was not true].',
    )
    t.paragraph()
    t.say(
        f'At [dinner|lunch], {h} could not eat. "[What is wrong|Is something wrong|Why are you so quiet]?" asked'
        f" {h.his} {e}.",
        f'Then {h.his} {e} came [in|home]. "[What is wrong|Is something wrong|Why are you so quiet]?" {e.he} asked.',
    )
    t.say(
        f'"I broke your {row.noun}. I am [sorry|so sorry|very sorry]," said {h} and [looked down|began to cry].',
        f'{h} took a deep breath. "It was me. I broke the {row.noun}, and I am [sorry|so sorry]," {h.he} said.',
    )
    t.say(
        f'{h.His} {e} was [quiet|sad] for a moment. "Thank you for telling me the truth," {e.he} said.',
        f'{h.His} {e} hugged {h.him}. "I am sad about the {row.noun}, but I am [glad|proud] that you told me,"'
        f" {e.he} said.",
    )
    t.say('"[Come|Now come], we can [mend|fix] it together."', '"Will you help me to [mend|fix] it?"')
    t.paragraph()
    t.say(f"So they {row.mend}.", f"They sat down [side by side|at the table], and {h} helped. They {row.mend}.")
    t.say(f"{row.after}.")
    t.say(
        f"{AFTER}, {h} was [careful|more careful] with the {row.noun} and always told the truth.",
        f"{h} felt [light|much better] again. {h.He} had learned that the truth can mend more than a {row.noun}.",
        f'"Everyone makes mistakes," said {h.his} {e}. {h} was {HAPPY} and never hid a mistake again.',
    )
    return row.noun


def rainy_day(t: Telling) -> str:
    """Rain spoils a plan for outdoors; an idea saves it indoors."""
    h, row = t.hero(), t.pick(RAINY_PLANS)
    e = t.elder()
    f = t.friend(h)
    introduce(t, h)
    t.say(
        f"{h} and {h.his} friend {f.full} wanted to {row.plan}.",
        f"[All week|For days], {h} [looked forward to Sunday|could not wait]. {h.He} and {f.full} wanted to"
        f" {row.plan}.",
    )
    t.paragraph()
    t.say(
        "But when the day came, [dark|gray|big] clouds filled the sky, and it began to rain.",
        "But that morning, the rain [fell and fell|came down hard|ran down the window].",
        "But [drip, drop|plip, plop], [fat|big|cold] drops of rain fell from the sky.",
    )
    t.say(
        f'"[Now we can not go|Our day is spoiled|I hate the rain]," said {h}, who was {SAD}.',
        f'{h} pressed {h.his} nose to the window. "[It is not fair|Our day is spoiled]," {h.he} said.',
        f'"No {row.noun} today," said {f}, and both of them were {SAD}.',
    )
    t.say(
        f"{h.His} {e} [brought|gave] them a [cup of cocoa|plate of cookies|bowl of nuts] and [smiled|sat down with"
        " them].",
        f'"[The rain is good for the flowers|Rain does not last forever]," said {h.his} {e}.',
    )
    t.paragraph()
    t.say(
        f'Then {f} had an idea. "{row.idea}!" {f.he} said.',
        f'Then {h} [jumped up|had an idea]. "{row.idea}!" {h.he} said.',
        f'"[Listen|I know]," said {h.his} {e}. "{row.idea}."',
    )
    t.say(f"They {row.making}.", f"[Soon|Right away] they were busy. They {row.making}.")
    t.say(f"Then they {row.fun}.", f"{h} and {f} {row.fun}.")
    t.maybe(
        0.5,
        "They laughed [so much|so loud] that they [forgot|did not hear] the rain.",
        f"Even {h.his} {e} [joined in|laughed out loud].",
    )
    if t.chance(0.5):
        meal(t, "they")
    t.paragraph()
    t.say(
        "[In the evening|At last|In the end], the rain stopped, and there was a rainbow [over the roofs|in the sky].",
        "[In the evening|At last|In the end], the sun came out, but nobody [noticed|wanted to go out].",
    )
    t.say(
        f'"This was the best {row.noun} of all," said {h}, and {f} {CHEERED}.',
        f"{h} was {HAPPY}. With a good idea and a good friend, a {row.noun} does not need the sun.",
        f'"[I hope|Maybe] it rains again tomorrow," said {f}. "Then we will have another {row.noun}."',
    )
    return row.noun


def plant(t: Telling) -> str:
    """A seed takes its time, and care."""
    h, e, row = t.hero(), t.elder(), t.pick(PLANTS)
    introduce(t, h)
    t.say(
        f'{DAY}, {h.his} {e} gave {h.him} a [tiny|small] seed. "[One day|Some day] it will be a {row.noun}," {e.he}'
        " said.",
        f'{DAY}, {h} found a [tiny|small] seed in a drawer. "That will be a {row.noun}," said {h.his} {e}.',
    )
    t.say(
        f"{h} [dug|made] a [little|small] hole in the [garden|ground] and put the seed in.",
        f"{h} put the seed in [a pot|a box] with [soft|dark|good] earth.",
    )
    t.say(f"{h.He} [gave it|brought it] water [every day|every morning] and [sang to it|told it stories|waited].")
    t.paragraph()
    t.say(
        "But [day after day|after three days|for a week], [nothing happened|there was only earth|there was nothing"
        " to see].",
        "One day went by, and two, and three. [Nothing happened|There was nothing to see].",
    )
    t.say(
        f'"[It does not work|It is asleep|It does not like me]," said {h}. {h.He} wanted to dig it up.',
        f'{h} was {SAD}. "[Maybe it is lost|Maybe it is dead|Why is it so slow]," {h.he} said.',
    )
    t.say(
        f'"[Wait a little|Be patient|Give it time]," said {h.his} {e}. "It needs [sun, water and time|time to wake'
        ' up]."',
        f'"A seed is busy where you can not see it," said {h.his} {e}. "[Wait a little|Be patient]."',
    )
    t.say(
        f"So {h} [waited|watered it] and [waited|hoped]. The [sun|moon] came and went, and [the rain|a soft rain]"
        " fell.",
        f"So {h} did not give up. {h.He} [chased the snails away|pulled out the weeds|kept the earth wet] and waited.",
    )
    t.paragraph()
    t.say(
        f'Then, one morning, {h.he} saw {row.sign}. "[Look|Come and look]! It is growing!" [called|cried] {h}.',
        f"And one day, there was {row.sign}. {h} {CHEERED}.",
    )
    t.say(
        "Week by week it grew [bigger|taller] and [stronger|greener].",
        "The [bees|birds|ants] came to see it, and it grew and grew.",
    )
    t.say(f"{row.grown}.")
    t.paragraph()
    t.say(f"{h} and {h.his} {e} {row.use}.", f"{h} was proud. {h.He} {row.use}.")
    t.say(
        f'"[You took good care of it|You did not give up]," said {h.his} {e}. {h} was {HAPPY} and looked at the'
        f" {row.noun}.",
        f"{h} learned that good things, like a {row.noun}, need time.",
        f'{h} kept one seed of the {row.noun} [in a box|in a jar]. "For next year," {h.he} said.',
    )
    return row.noun


def party(t: Telling) -> str:
    """A secret is hard to keep, and worth it."""
    h, e = t.hero(), t.elder()
    f = t.friend(h)
    helper = t.pick([other for other in ELDERS if other is not e])
    gift = t.pick(("scarf", "picture", "necklace", "hat", "cup", "pillow", "book"))
    flavor = t.pick(("chocolate", "lemon", "honey", "berry", "apple", "carrot", "nut", "cherry"))
    introduce(t, h)
    t.say(
        f"[Tomorrow|On Sunday] was the birthday of {h.his} {e}, and {h} wanted to [plan|make] a surprise party.",
        f'"It is {e.call}\'s birthday [tomorrow|on Sunday]," said {h}. "[I want to make|Let us have] a surprise'
        ' party!"',
    )
    t.say(
        f"{h.His} {helper} and {h.his} friend {f} wanted to help.",
        f"{h} asked {h.his} {helper} and {h.his} friend {f.full} to help.",
    )
    t.say(f'"[Sh|Psst]! It is a secret," {h} said.', "They had to be [very quiet|as quiet as mice].")
    t.paragraph()
    t.say(
        f"{h} and {h.his} {helper} baked a [big|round|tall] {flavor} cake.",
        f"{h.His} {helper} baked a {flavor} cake, and {h} [licked the spoon|put cream on it|stirred the bowl].",
    )
    t.say(
        f"{f} [hung up|made] [{COLORS}] and [gold|silver|black|gray] [balloons|paper stars|flags|ribbons].",
        f"{f} [painted|wrote] a big sign with [{COLORS}] [letters|hearts|flowers].",
    )
    t.say(
        f"{h} [made|secretly made] a [{COLORS}] {gift} as a gift.",
        f"For a gift, {h} made a [{COLORS}] {gift}.",
    )
    t.paragraph()
    t.say(
        f'Then {h.his} {e} came to the door. "[What smells so good|What is going on here|Why is it so quiet]?"'
        f" {e.he} asked.",
        f'Just then, {h.his} {e} looked in. "[What are you doing|What is in that bowl|What is going on]?" {e.he}'
        " asked.",
    )
    t.say(
        f"{h} almost told {e.him}. But {h.he} put a hand over {h.his} mouth.",
        f'"[Nothing|Nothing at all]," said {h} and hid [the spoon|the gift|a ribbon] behind {h.his} back.',
    )
    t.say(
        f'"[Come|Please come], let us take a walk," said {f} quickly, and the secret was safe.',
        f"{f} [dropped a pot|sang a loud song|asked for some milk], and {h.his} {e} [looked away|forgot about it].",
    )
    t.paragraph()
    t.say(
        f"When {h.his} {e} came back, [the room was dark|it was very quiet]. Then the lights went on.",
        f"In the [evening|afternoon], they all hid behind the [sofa|table|curtain] and waited for {h.his} {e}.",
    )
    t.say(
        f'"Surprise!" they all [called|shouted|cried]. {h.His} {e} [laughed and cried|could not believe it].',
        f'"Surprise!" [called|shouted|cried] {h}. "Happy birthday!"',
    )
    t.say(
        f"They ate the {flavor} cake, and {h} gave {e.him} the {gift}.",
        f"First came the {gift}, and then [everyone|each of them] had a [big|large] piece of {flavor} cake.",
    )
    t.say(
        f'"This is the best party of my life," said {h.his} {e} and hugged {h}.',
        f"{h} was {HAPPY}. It had been hard to keep the party a secret, but it was worth it.",
        f"{h} fell asleep with a smile. The party was the best secret that {h.he} had ever kept.",
    )
    return "party"


def patience(t: Telling) -> str:
    """Hurry spoils it the first time; the second time the hero can wait."""
    h, e, row = t.hero(), t.elder(), t.pick(WAITS)
    introduce(t, h)
    t.say(f"{DAY}, {h} and {h.his} {e} {row.start}.", f"{DAY}, {h} {row.start}. {h.His} {e} helped {h.him}.")
    t.say(
        f'"[Now|And now] we must wait {row.until}," said {h.his} {e}.',
        f'"[Is it ready|Can I have it now]?" asked {h}. "No, we must wait {row.until}," said {h.his} {e}.',
    )
    t.paragraph()
    t.say(
        f"But {h} [did not like to wait|could not wait|hated waiting]. {h.He} [hopped from foot to foot|looked at"
        " the clock].",
        f"{h} waited for one minute. It felt like [an hour|a year|a whole day].",
    )
    t.say(
        f"When {h.his} {e} [went out|looked away|was in the garden], {h} {row.hurry}.",
        f'"[It must be ready now|Just one little look]," said {h} and {row.hurry}.',
    )
    t.say(f"[Oh no|Oh dear|Oops]! {row.spoiled}.", f"{row.spoiled}.")
    t.say(
        f'{h} [cried|began to cry]. "[I spoiled it|I should have waited|It is all my fault]," {h.he} said.',
        f'{h} was {SAD}. "[I spoiled it|I should have waited]," {h.he} said.',
    )
    t.paragraph()
    t.say(
        f'"[It is all right|Do not cry]," said {h.his} {e}. "We can [start again|try again]."',
        f'{h.His} {e} [was not angry|gave {h.him} a hug]. "Come, we will [start again|try again]," {e.he} said.',
    )
    t.say(f"They made the {row.noun} [once more|again], and this time they waited [together|side by side|to the end].")
    t.say(
        "They [read a story|read a book] about a [dragon|pirate|whale|king], [sang|hummed] [two|three|ten] songs and"
        " [counted the birds|fed the cat|swept the floor].",
        f"{h} drew a [{COLORS}] [cat|house|train|tree], [washed the spoons|set the table] and [sang a song|told a"
        " joke].",
        f"They played [ball|cards|hide and seek], and {h} [told a joke|fed the birds|built a tower of blocks].",
    )
    t.say(
        f"{h} wanted to look, but {h.he} [waited|did not|stayed strong].",
        f'"[Not yet|Soon]," {h} said to {h.his} [toy bear|own hands|fingers].',
    )
    t.paragraph()
    t.say(f'At last {h.his} {e} said, "Now!" {row.good}.', f"Then the time was up. {row.good}.")
    t.say(
        f'"[It was worth it|Waiting was hard, but good]," said {h} and {CHEERED}.',
        f"{h} was {HAPPY} and [hugged|danced with] {h.his} {e}.",
    )
    t.say(
        f"{h} learned to wait, because good things need time, just like the {row.noun}.",
        f"{AFTER}, when {h} had to wait, {h.he} thought of the {row.noun} and [sang a song|smiled|counted to ten].",
    )
    return row.noun


def tidying(t: Telling) -> str:
    """A thing can not be found in a messy room."""
    h, e, toy = t.child(), t.elder(), t.pick(TOYS)
    kind = t.pick(toy.looks)
    event = t.pick(("the toy show", "the school party", "the summer fair", "the picnic", "the garden party"))
    hidden = t.pick(("under a pile of socks", "behind a box of blocks", "in a boot", "under the bed", "in a paper bag"))
    introduce(t, h)
    t.say(
        f"{h.His} room was a [big|great|terrible] mess. There were [socks|papers] and [blocks|crayons|shoes]"
        " everywhere.",
        f"{h} never put anything away. [Socks|Papers], [blocks|crayons] and [shoes|crumbs] lay all over the room.",
    )
    t.say(
        f"{DAY}, {h} wanted to take {h.his} {kind} {toy.noun} to {event}.",
        f'{DAY}, it was time for {event}. "I will take my {kind} {toy.noun}," said {h}.',
    )
    t.paragraph()
    t.say(
        f"{h} looked [on the bed|on the shelf|by the door] and [on the chair|in the box|by the window]. It was not"
        " there.",
        f"But where was the {toy.noun}? {h} looked [left and right|here and there] and [stepped on a block|fell over"
        " a shoe].",
    )
    t.say(
        f'"[My {toy.noun} is gone|Someone took my {toy.noun}|I can not find my {toy.noun}]!" [cried|called] {h}.',
        f"{h} got [angry|hot and red] and threw [a sock|a pillow] at the wall.",
    )
    t.say(
        f'{h.His} {e} [came in|stood in the door]. "[Nobody can find anything here|The mess has eaten it]," {e.he}'
        " said.",
        f'"[Have you looked under the mess|When did you last see the floor]?" asked {h.his} {e}.',
    )
    t.say('"I will help you. [Put one thing away at a time|Start with the small things|Let us start with the floor]."')
    t.paragraph()
    t.say(
        "The [socks|papers] went into the drawer, and the [blocks|crayons] went into their [box|basket].",
        f"{h} put the [books|games] on the shelf, and {h.his} {e} [folded the shirts|swept up the crumbs].",
    )
    t.maybe(0.6, "They [sang|whistled] a song, and the work [went fast|was almost fun].")
    t.maybe(
        0.6, f"{h} found [a penny|an apple|a button|a lost shoe] and [an old cookie|a dead bug|a long letter], too."
    )
    t.say(
        f"And then, {hidden}, there was the {kind} {toy.noun}!",
        f'"[There it is|I found it]!" [called|cried] {h}. The {toy.noun} was {hidden}.',
    )
    t.paragraph()
    t.say(f"{h} was just in time for {event}.", f"{h} {CHEERED}. {h.He} was not even late for {event}.")
    t.say(
        f"{AFTER}, the {toy.noun} had its own place [on the shelf|by the bed], and {h} always put it back.",
        f"{h} learned that a {toy.noun} is easy to find when everything has its place.",
        f"That night, {h} put the {toy.noun} on the shelf and looked at the clean room. {h.He} was {HAPPY}.",
    )
    return toy.noun


def new_food(t: Telling) -> str:
    """One small bite changes a mind."""
    h, e = t.hero(), t.elder()
    food = t.pick(("pumpkin soup", "green beans", "pea soup", "beet salad", "fish pie", "mushroom pie", "spinach"))
    it, was = ("them", "were") if food.endswith("s") else ("it", "was")
    safe = t.pick(("noodles", "white bread", "pancakes", "rice with butter", "plain toast"))
    introduce(t, h)
    t.say(
        f"{h} only liked to eat {safe}. {h.He} ate {safe} [in the morning|at noon] and {safe} [at night|in the"
        " evening].",
        f"{h} did not like new food. {h.He} [only|always] wanted {safe}.",
    )
    t.say(f"{DAY}, {h.his} {e} cooked {food} for [lunch|dinner].", f"{DAY}, there {was} {food} for [lunch|dinner].")
    t.paragraph()
    t.say(
        f'"[Yuck|No]! I do not like {food}," said {h} and pushed the [plate|bowl] away.',
        f'{h} [made a face|held {h.his} nose|shut {h.his} mouth]. "I will not eat that," {h.he} said.',
    )
    t.say(
        f'"[Have you ever tried|Did you ever taste] {it}?" asked {h.his} {e}. "No," said {h}, "but [I know|I am sure]."'
    )
    t.say(
        f'"When I was [small|little], I did not like {it} either," said {h.his} {e}. "[Then|One day] I tried one'
        ' bite."',
        f'"You do not have to [eat it all|finish]," said {h.his} {e}. "[Just take|Take] one [small|tiny] bite."',
    )
    t.paragraph()
    t.say(
        f"{h} [looked at|sniffed at] {h.his} spoon for a long time.",
        f"{h} put [a tiny bit|one small bite] on {h.his} spoon and [sniffed|looked] at it.",
        f"{h} closed {h.his} eyes and opened {h.his} mouth [a little|just a little].",
    )
    t.say(
        f"{h.He} took one bite. [Hm|Oh]! The {food} tasted [sweet|warm] and [soft|good|a little salty].",
        f"One bite went in. {h} [chewed|waited]. Then {h.his} eyes [grew big|opened wide].",
    )
    t.say(
        f'"[This is good|I like {it}|Yum]!" said {h}. "[May|Can] I have [more|some more]?"',
        f"{h} took another bite, and [one more|then another], until the [plate|bowl] was [empty|clean].",
    )
    t.say(
        f'{h.His} {e} laughed. "[I told you so|You see|Now you know]," {e.he} said.',
        f"{h.His} {e} {CHEERED}.",
    )
    t.paragraph()
    t.say(
        f'The next day, {h}\'s friend said, "I do not like {food}." "Try one bite first," said {h}.',
        f"{AFTER}, {h} tried [every|each] new dish [at least once|with one bite], but {h.he} liked {food} best.",
        f"{h} learned that you can not know before you try. Now {h.he} asked for {food} every [week|Sunday].",
    )
    return food
