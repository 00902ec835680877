"""Plots of the bundled stories between two friends: to share, to build, to meet, to pull together, to learn from.

A plot tells one whole story to a `Telling` and returns the word for what the story is about: it stands in the story's
first paragraph and in its last. Any variant of a sentence can follow any variant of the one before.
"""

from pipeline.storyteller.craft import AFTER, CHEERED, DAY, HAPPY, SAD, Telling, introduce, look, meal
from pipeline.storyteller.events import PROJECTS, SKILLS, TASKS
from pipeline.storyteller.world import COLORS, PLACES, TOYS


def sharing(t: Telling) -> str:
    """A toy kept for oneself is no fun; shared, it is."""
    h, toy, place = t.hero(), t.pick(TOYS), t.pick(PLACES)
    f, kind = t.friend(h), t.pick(toy.looks)
    introduce(t, h)
    t.say(
        f"{h} had a new {toy.noun}. It was {kind} and [very nice|very pretty|just right].",
        f"{h.His} [aunt|uncle|cousin] gave {h.him} a {kind} {toy.noun}.",
        f"{h} [saved all {h.his} coins|waited a long time] and got a {kind} {toy.noun}.",
    )
    t.paragraph()
    t.say(
        f"{DAY}, {h} took the {toy.noun} {place.to}.",
        f"{DAY}, {h} went {place.to} with the {toy.noun} [under one arm|in a bag|in {h.his} hands].",
    )
    t.maybe(0.6, f"{h.He} sat down and {toy.played}.", f"{h.He} [went to a quiet corner|found a good place] to play.")
    t.say(
        f"[Soon|Then|After a while] {h.his} friend {f}, [the|a] [friendly|cheerful|quiet] {f.kind}, came by.",
        f"{f}, a [friendly|cheerful|quiet] {f.kind} from [next door|the other side of the hill|close by], was there"
        " too.",
    )
    t.say(
        f'"[What a nice|What a lovely] {toy.noun}! [Can|May] I play with it [too|for a while]?" asked {f}.',
        f'"[Can|May] I have a turn with your {toy.noun}?" asked {f}.',
    )
    t.say(
        f'"No! It is [mine|only mine|all mine]," said {h} and [turned away|held it tight|hid it].',
        f'"No, you [might|may] [break|lose] it," said {h} and [turned away|held it tight|hid it].',
    )
    t.say(
        f"{f} was {SAD} and [walked away|sat down alone|looked at the ground].",
        f"{f} said nothing and [walked away|sat down alone|looked at the ground].",
    )
    t.paragraph()
    t.say(
        f"{h} played alone. But [after a while|soon] it was [boring|no fun|too quiet].",
        f"Now {h} had the {toy.noun} all alone, but it was [not much fun|no fun|a little boring].",
    )
    if t.chance(0.4):
        look(t, h.name, place)
    t.say(
        f"{h} saw {f}'s sad face and felt [bad|sorry|a lump in {h.his} throat].",
        f"Then {h} thought of {f} and felt [bad|sorry|lonely].",
    )
    t.say(
        f'{h.He} [went|ran|walked] over. "I am sorry, {f}. [Let us play together|We can take turns|You can go first],"'
        f" {h.he} said.",
        f'"{f}! I was not [nice|kind]. [Let us play together|We can take turns|You can go first]," [called|said] {h}.',
    )
    t.say(
        f"{f}'s face [lit up|became bright|turned to a big smile].",
        f'"[Really|Oh, really]? Thank you!" [said|cried] {f} and {CHEERED}.',
    )
    t.paragraph()
    t.say(
        f"{f} knew a [new|funny|good] game, and they played with the {toy.noun} until [dinner|it got dark|the sun"
        " set].",
        f"They took turns with the {toy.noun}, first {f}, then {h}, [and then again|over and over].",
        f"Together they took the {toy.noun} and {toy.played}, and [the hours flew by|they could not stop laughing].",
    )
    t.maybe(0.4, f"{h} and {f} both {CHEERED}.", f'"This is [better|much better]," said {h}.')
    t.say(
        f"{h} learned that a {toy.noun} is [twice as much|more] fun when you share it.",
        f"{AFTER}, {h} shared the {toy.noun} with {f} [every day|every time they met], and they were good friends.",
        f"{h} was {HAPPY}. {h.He} still had the {toy.noun}, and now {h.he} had a friend as well.",
    )
    return toy.noun


def building(t: Telling) -> str:
    """Two friends build something; it breaks; they find out why and do it better."""
    h, row = t.hero(), t.pick(PROJECTS)
    f = t.friend(h)
    first = t.pick(row.parts)
    second = t.pick([part for part in row.parts if part != first])
    introduce(t, h)
    t.say(
        f'{DAY}, {h} had an idea. "I want to build a {row.noun}," {h.he} said, "to {row.why}."',
        f"{DAY}, {h} wanted to build a {row.noun} to {row.why}.",
    )
    t.say(
        f"{h.His} friend {f}, a [quiet|cheerful|clever|funny] {f.kind}, came to help.",
        f'{h} asked {h.his} friend {f}. "[I will help you|That sounds like fun|Yes, let us start]!" said {f.full}.',
    )
    t.paragraph()
    t.say(
        f"{h} [brought|carried|found] {first}, and {f} [brought|carried|found] {second}.",
        f"First they looked for what they needed. {h} found {first}, and {f} found {second}.",
    )
    t.say(
        f"They worked [hard|all morning|for hours], and [soon|at last] the {row.noun} was [done|ready].",
        f"They [worked and sang|talked and worked|worked side by side] until the {row.noun} was [done|ready].",
    )
    t.say(
        f"But [then|suddenly|after a while] {row.failure}.",
        f'"[Hooray|Look at it]!" said {f}. But [just then|at that moment] {row.failure}.',
    )
    t.say(
        f'{h} was {SAD}. "[It will never work|All our work is gone|I give up]," {h.he} [said|cried].',
        f'{h} [kicked a stone|sat down on the ground|wanted to cry]. "[It will never work|I give up]," {h.he} said.',
    )
    t.paragraph()
    t.say(
        f'"[Wait|Do not give up|Let us think]," said {f} and looked at it [closely|from all sides]. "{row.advice}."',
        f'But {f} did not give up. "[I see|I know why|Now I know]," said {f}. "{row.advice}."',
    )
    t.say(f"So they started [again|over] and {row.fix}.", f"They tried [again|once more]. This time they {row.fix}.")
    t.maybe(0.5, f'"[Better|Much better]," said {h}.', f"{h} and {f} got [dirty|tired|hungry], but they did not stop.")
    t.say("And this time it [worked|held]!", f"This time the {row.noun} was [strong|just right].")
    t.paragraph()
    t.say(f"{row.use}.")
    t.say(
        f'"[We did it|We made it]," said {h}. "We make a good team."',
        f"{h} and {f} {CHEERED}. They were [proud|very proud] of their work.",
    )
    t.say(
        f"They learned that a {row.noun}, like every good thing, may need a second try.",
        f"{AFTER}, when something went wrong, {h} thought of the {row.noun} and tried again.",
        f"{h} looked at the {row.noun} [every day|every morning] and was glad that they had not given up.",
    )
    return row.noun


def new_friend(t: Telling) -> str:
    """Someone new is shy; a toy and a kind word break the ice."""
    h, place, toy = t.hero(), t.pick(PLACES), t.pick(TOYS)
    f, kind = t.friend(h), t.pick(toy.looks)
    introduce(t, h)
    t.say(
        f"{h} [often|always] played with a {kind} {toy.noun}, but {h.he} had nobody to play with.",
        f"{h} had a {kind} {toy.noun}, but what {h.he} wanted most was a friend.",
    )
    t.paragraph()
    t.say(
        f"{DAY}, {h} went {place.to}. There {h.he} saw a {f.kind} [that {h.he} did not know|all alone].",
        f"{DAY}, a new {f.kind} was {place.at}. {f.He} [sat|stood] [all alone|apart from the others].",
    )
    if t.chance(0.4):
        look(t, h.name, place)
    t.say(
        f'"Hello, I am {h}. What is your name?" [asked|said] {h}.',
        f'{h} [waved|smiled]. "Hi! My name is {h}. [Are you new here|Who are you]?" {h.he} asked.',
    )
    t.say(
        f"The {f.kind} looked at [the ground|{f.his} feet] and said nothing. {f.He} was [shy|very shy].",
        f'"Hello," [whispered|said] the {f.kind} in a [tiny|small|soft] voice and [turned red|hid behind a tree].',
    )
    t.paragraph()
    t.say(
        f"{h} [thought for a moment|did not give up|had an idea]. {h.He} took out the {toy.noun} and {toy.played}.",
        f'"Look what I have," said {h}. {h.He} took out the {toy.noun} and {toy.played}.',
    )
    t.say(
        f"[The {f.kind}|The new {f.kind}] [came closer|looked up|began to smile].",
        f"That was so [funny|nice] that the {f.kind} [came closer|looked up|began to smile].",
    )
    t.say(
        f'"[Would you like|Do you want] to try?" asked {h}. "[Yes, please|Oh yes|I would love to]! I am {f}," said'
        f" the {f.kind}.",
        f'"Here, it is your turn," said {h}. The {f.kind} [laughed|smiled]. "I am {f}," {f.he} said.',
    )
    t.say(
        "They [played|ran around|laughed] until [lunch|dinner|the sun went down].",
        f"{f} knew [many|a hundred|some] [jokes|games|songs], and they [played|laughed] until [lunch|dinner].",
    )
    if t.chance(0.5):
        meal(t, "they")
    t.paragraph()
    t.say(
        f'"Will you [come back|be here] tomorrow?" asked {f}. "[Of course|Yes]," said {h}, "and I will bring the'
        f' {toy.noun}."',
        f"When they had to go home, {h} [let {f} keep|gave {f}] the {toy.noun} until the next day.",
    )
    t.say(
        f"{AFTER}, they met [every day|each day], and nobody was [alone|lonely|shy] anymore.",
        f"{h} was {HAPPY}. One kind word is enough to [make|find] a friend.",
        f'{h} ran home. "I [have|found] a friend!" {h.he} [called|sang|shouted].',
    )
    return toy.noun


def teamwork(t: Telling) -> str:
    """What one can not do, three can."""
    h, row = t.animal(), t.pick(TASKS)
    f = t.animal(h)
    third = t.pick(("mouse", "bird", "frog", "duck", "beetle", "snail", "hen"))
    third = third if third not in (h.kind, f.kind) else "ant"
    introduce(t, h)
    t.say(
        f"{DAY}, {h} wanted to {row.wish}.",
        f'"[Today|Now] I will {row.wish}," {h} said one [morning|sunny morning|cold morning|Monday|Friday|fine day].',
    )
    t.say(f"{h.He} {row.alone}.", f"{h.He} [tried hard|did {h.his} best]. {h.He} {row.alone}.")
    t.paragraph()
    t.say(
        f'{f} the {f.kind} came by. "[What are you doing|Do you need help|Is something wrong]?" {f.he} asked.',
        f"{h} called {f} the {f.kind}, who was [strong|big and strong|always ready to help].",
    )
    t.say(
        f'"[I can not do it alone|It is too hard for one]," said {h}. "[Please help me, {f}|Let us do it together]."',
        f'"[I can not do it alone|It is too hard for one]," said {h}. "Then we are two," said {f}.',
    )
    t.say(
        "They [tried|worked] and tried, but it was [still|still a little] too hard.",
        f"[{h} and {f}|The two friends] tried together. It [almost worked|nearly worked], but not quite.",
    )
    t.paragraph()
    t.say(
        f'Then a little {third} [came along|stopped]. "[Let me help|I can help|I want to help]," said the {third}.',
        f'"[Let me help|I can help|I want to help]," said a tiny voice. It was a {third}.',
    )
    t.say(
        f'{f} [laughed|shook {f.his} head]. "You are so [small|little]!" {f.he} said. But {h} said,'
        ' "[Everyone can help|Every bit helps]."',
        f'"You are [very small|only little]," said {f}. "But I am not weak," said the {third}.',
    )
    t.say(
        f"So all three of them {row.together}. One, two, three, and {row.result}!",
        f'"[All together now|On three]," said {h}. They {row.together}, and {row.result}!',
    )
    t.paragraph()
    t.say(
        f'They {CHEERED}. "[Thank you|We could not do it without you]!" {h} said to the {third}.',
        f'"You see," said the {third}, "[small friends can be a big help|together we are strong]."',
    )
    if t.chance(0.6):
        meal(t, "the three friends")
    t.say(
        f"{h} learned that [no one|nobody] is too small to help.",
        f"{AFTER}, the three of them did [everything|all the hard work] together.",
    )
    t.say(
        f"And [whenever|when] they [talked about|thought of] the {row.noun}, they [laughed|smiled|felt proud].",
        f"They never forgot the day of the {row.noun}.",
    )
    return row.noun


def sick_friend(t: Telling) -> str:
    """A friend is ill, and a small gift cheers the friend up."""
    h, e = t.hero(), t.elder()
    f = t.friend(h)
    gift = t.pick(("card", "soup", "puppet", "bunch of flowers", "picture", "paper bird"))
    made = {
        "card": f"cut a card from [{COLORS}] paper and wrote get well soon on it",
        "soup": "cooked a pot of [carrot|noodle|tomato|vegetable] soup",
        "puppet": f"made a puppet from an old [{COLORS}] sock and two buttons",
        "bunch of flowers": f"picked a bunch of [{COLORS}] flowers",
        "picture": f"drew a picture of {f} as a [king|pirate|strong bear|star]",
        "paper bird": f"folded a paper bird with [{COLORS}] wings",
    }[gift]
    a_gift = "some soup" if gift == "soup" else f"a {gift}"
    introduce(t, h)
    t.say(
        f"{h} played with {h.his} friend {f.full} every day.",
        f"{h.His} best friend was {f}, a [funny|lively|quiet|kind] {f.kind} [next door|from the next house].",
    )
    t.say(
        f"{DAY}, {f} did not come. {f.He} was sick [in bed|at home], and {h} wanted to bring {f.him} {a_gift}.",
        f'{DAY}, {f} was sick. "I want to [bring|give] {f.him} {a_gift}," {h} [said|told {h.his} {e}].',
    )
    t.paragraph()
    t.say(f"With a little help from {h.his} {e}, {h} {made}.", f"So {h} {made}. {h.His} {e} helped [a little|a bit].")
    t.say(
        f'"Will {f} like it?" asked {h}. "[I am sure|Of course]," said {h.his} {e}. "It [is made|comes] with love."',
        f'"[That is kind of you|How kind]," said {h.his} {e}. "Now {f} will feel better."',
    )
    t.maybe(0.5, f"On the way, {h} walked [very slowly|with great care] and [sang|hummed] a [little|happy] song.")
    t.paragraph()
    t.say(
        f"{f} lay in bed with a [red|hot|runny] nose and a [sore throat|cough|thick scarf].",
        f"{f} looked [pale|tired] under a [thick|big|warm] [{COLORS}] blanket.",
    )
    t.say(
        f'"[I am so bored|I feel so bad|My head hurts]," said {f}. "[Look|Here], I have something for you," said {h}.',
        f'"[Hello|Good morning], {f}! I brought you something," said {h} and held out the {gift}.',
    )
    t.say(
        f"{f} sat up and smiled for the first time [that day|in days].", f'"[For me|Just for me]? Thank you!" said {f}.'
    )
    t.say(
        f"{h} told {f.him} a story about a [dragon|pirate|whale|fairy] who lost a [shoe|tooth|crown], and they"
        " laughed.",
        f"Then {h} read {f.him} a book about [a dragon|a pirate|the moon|the sea] until {f.he} fell asleep.",
        f"{h} told [jokes|funny stories], and {f} laughed [so hard that the bed shook|until {f.his} belly hurt].",
    )
    t.paragraph()
    t.say(
        f"[Three|Two|Four] days later, {f} was well [and back outside|and could play again].",
        f"[Soon|The next week], {f} was well again and ran to {h}'s door.",
    )
    t.say(
        f'"Your {gift} made me well," said {f}. "That was the best medicine." {h} was {HAPPY}.',
        f"{h} was {HAPPY}. {a_gift.capitalize()} and a kind friend can make you feel better.",
        f"And when {h} was sick in the [winter|spring], {f} brought {h.him} {a_gift}.",
    )
    return gift


def practice(t: Telling) -> str:
    """Nobody can do it at once; every day a little gets there."""
    h, e, row = t.child(), t.elder(), t.pick(SKILLS)
    f = t.child(h)
    introduce(t, h)
    t.say(
        f"{h} [wanted|wished] to {row.wish}, [just like|like] {h.his} friend {f}.",
        f'{DAY}, {h} saw how {h.his} friend {f} could {row.wish}. "I want to do that too," {h.he} said.',
    )
    t.paragraph()
    t.say(f"{h} tried it [at once|right away], but {h.he} {row.failure}.", f"The first time, {h} {row.failure}.")
    t.say(
        f"{h.He} tried again and again, and every time {h.he} {row.failure}.",
        "The [second|next] time was [no better|even worse].",
    )
    t.say(
        f'"I will never learn it," said {h}. {h.He} was {SAD}.',
        f'"It is too hard!" [cried|said] {h} and [stamped {h.his} foot|wanted to give up].',
    )
    t.say(
        f'"[I could not do it at first|It took me a whole month], {h}," said {f}. "{row.tip}."',
        f'"Nobody can do it on the first day," said {h.his} {e}. "{row.tip}."',
    )
    t.paragraph()
    t.say(
        f"So {h} practiced [every day|every morning|every day after school].",
        f"{h} [nodded|dried {h.his} eyes]. {h.He} practiced on [Monday|Tuesday] and on [Wednesday|Thursday|Friday].",
    )
    t.say(f"[Soon|After some days|After a week], {h.he} {row.small_win}.")
    t.say(
        f'"[That is better|You are getting better|Good]!" said {h.his} {e}.',
        f"{f} [clapped|cheered|was glad] for {h.him}.",
    )
    t.maybe(0.5, f"{h} [had a sore arm|was tired] [in the evenings|at night], but {h.he} [did not mind|kept going].")
    t.say(f"And then, one day, {h} {row.success}!", f"Two weeks later, {h} {row.success}!")
    t.paragraph()
    t.say(f'"I [did it|can do it]!" [called|cried|shouted] {h}.', f"{f} and {h.his} {e} clapped [their hands|loudly].")
    t.say(
        f"{h} was proud of the {row.noun}, and even more proud that {h.he} had not given up.",
        f'The next week, a [little|small] [boy|girl] wanted to try the {row.noun}. "I will show you," said {h}.',
        f"{h} looked at the {row.noun} [and smiled|with a smile]. A little practice every day had done it.",
    )
    return row.noun
