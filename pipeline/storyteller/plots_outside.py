"""Plots of the bundled stories that happen outside: things lost and found, fears, strangers, races.

A plot tells one whole story to a `Telling` and returns the word for what the story is about: it stands in the story's
first paragraph and in its last. Any variant of a sentence can follow any variant of the one before.
"""

from pipeline.storyteller.craft import AFTER, CHEERED, DAY, HAPPY, SAD, Telling, introduce, meal, outing
from pipeline.storyteller.events import FEARS, RESCUES
from pipeline.storyteller.world import COLORS, PLACES, TOYS


def lost_toy(t: Telling) -> str:
    """A toy gets lost on an outing; someone has seen it; it lies where one can hardly get it."""
    h, e, toy, place = t.hero(), t.elder(), t.pick(TOYS), t.pick(PLACES)
    spot, animal, kind = t.pick(place.spots), t.pick(place.animals), t.pick(toy.looks)
    introduce(t, h)
    t.say(
        f"{h} had a {kind} {toy.noun} and took it [everywhere|along on every walk|to every place].",
        f"{h.His} [best|favorite] toy was a {kind} {toy.noun}.",
        f"For {h.his} birthday, {h} got a {kind} {toy.noun} from {h.his} [aunt|uncle|cousin|brother|sister].",
        f"Of all {h.his} toys, {h} loved the {kind} {toy.noun} [the most|best].",
    )
    t.say(f"{h} [liked|loved] to {toy.play} [all day long|every day|after lunch|in the morning|again and again].")
    t.paragraph()
    outing(t, h, f"{h.his} {e}", place)
    t.say(
        f"{h} [played with the {toy.noun}|took out the {toy.noun} and {toy.played}].",
        f"{h} held the {toy.noun} [tight|in one hand|close] and ran [ahead|around|here and there].",
    )
    t.maybe(0.35, "Then they sat down to rest.", "They had a [lovely|very good|wonderful] time.")
    t.say(
        f"But when it was time to go home, the {toy.noun} was [gone|not there|nowhere to be seen].",
        f"[Suddenly|All at once|After a while], {h} looked down and the {toy.noun} was [gone|not there].",
    )
    t.say(
        f'"[Oh no|Oh dear]! Where is my {toy.noun}?" [cried|asked|called] {h}.',
        f'"I have lost my {toy.noun}!" [cried|said|sobbed] {h}.',
        f"{h} felt {SAD} and began to [cry|look around|search].",
    )
    t.say(
        f'"[Do not worry|Do not cry|Stay calm]," said {h.his} {e}. "[Let us|We will] look for it together."',
        f'{h.His} {e} [took {h.his} hand|gave {h.him} a hug]. "We will find it," said {h.his} {e}.',
    )
    t.paragraph()
    t.say(
        "They looked [here and there|left and right|behind every stone|under every leaf], but they did not find it.",
        "They went back [step by step|the way they had come|slowly] and looked [everywhere|at every corner].",
    )
    t.say(
        f'[Then|Just then|Soon] they met a [friendly|kind|little|young] {animal}. "[Have you seen|Did you see] my'
        f' {kind} {toy.noun}?" asked {h}.',
        f'A [friendly|small|kind] {animal} came by. "[Please|Hello], have you seen a {kind} {toy.noun}?" asked {h}.',
    )
    t.say(f'"Yes," said the {animal}. "[It is|I saw it] {spot.where}."', f'"Look {spot.where}," said the {animal}.')
    t.say(
        f"[There it was|And there it was], {spot.where}, but {spot.trouble}.",
        f"They ran to look, and the {toy.noun} was really {spot.where}. But {spot.trouble}.",
    )
    t.say(f"So {h} and {h.his} {e} {spot.fix}.", f"Then they had an idea. They {spot.fix}.")
    t.paragraph()
    t.say(
        f'"[Thank you|Thank you so much]!" {h} said to the {animal}.',
        f'{h} [hugged|thanked] the {animal}. "You are a [good|real|true] friend," {h.he} said.',
        f"{h} was {HAPPY} and thanked the {animal} [two times|many times|again and again].",
    )
    t.say(
        f"{AFTER}, {h} [always held|kept] {h.his} {toy.noun} close and never [left it behind|lost it] again.",
        f"That night, {h} put the {toy.noun} [next to the pillow|on the shelf|by the bed] and [slept well|fell"
        " asleep].",
        f"On the way home, {h} held the {toy.noun} with both hands and {CHEERED}.",
        f"{h} learned to take [good|better] care of {h.his} {toy.noun}, and to ask for help when something is lost.",
    )
    return toy.noun


def fear(t: Telling) -> str:
    """A wish, a fear in front of it, good advice, and courage."""
    h, e, row = t.child(), t.elder(), t.pick(FEARS)
    introduce(t, h)
    t.say(
        f"More than anything, {h} wanted to {row.wish}.",
        f"{h} had a [big|secret|great] wish. {h.He} wanted to {row.wish}.",
        f"All {h.his} friends could {row.wish}, and {h} wanted to do it too.",
    )
    t.say(
        f"But {h.he} was [afraid|very afraid|scared] of {row.of}.",
        f"There was just one [problem|small problem]. {h} was [afraid|scared] of {row.of}.",
    )
    t.paragraph()
    t.say(
        f"{DAY}, {h} tried. {h.He} {row.attempt}.",
        f"{DAY}, {h} wanted to be brave. But {h.he} {row.attempt}.",
    )
    t.say(
        f'"I can not do it," {h.he} [said|cried|whispered]. "{row.worry}"',
        f'{h.His} [knees|hands|legs] [shook|trembled]. "{row.worry}" {h.he} [asked|whispered].',
    )
    t.say(
        f"{h.His} {e} [sat down|came and sat] [next to|beside] {h.him}.",
        f"{h.His} {e} [saw it and|heard it and] [took {h.his} hand|put an arm around {h.him}].",
    )
    t.say(
        f'"[Everyone is afraid of something|I was afraid too when I was small|It is all right to be afraid]," said'
        f' {h.his} {e}. "{row.advice}."',
        f'"[I know a trick|Here is a trick|I can help you]," said {h.his} {e}. "{row.advice}."',
    )
    t.paragraph()
    t.say(
        f"{h} [took a deep breath|closed {h.his} eyes for a moment|thought about it and nodded].",
        f'"[All right|Yes|Good idea], I will try [again|one more time]," said {h}.',
    )
    t.say(f"{h.He} {row.deed}.", f"Then {h.he} {row.deed}.")
    t.say(
        f'"I [did it|am doing it]!" [called|cried|shouted] {h}, and {h.his} {e} {CHEERED}.',
        f'"[Look|Look at me]! I am not afraid!" [called|cried|shouted] {h}.',
        f"{h} {CHEERED} and was not afraid [anymore|at all].",
    )
    t.paragraph()
    t.say(f"{row.reward}.")
    t.say(
        f"{h} was {HAPPY}. {h.He} had learned that being brave means to try even when you are [afraid|scared].",
        f"{AFTER}, {row.of} did not stop {h} anymore, and the {row.noun} made {h.him} {HAPPY}.",
        f'"I was afraid and I did it [all the same|anyway]," {h} told [everyone|a friend|the cat]. "That is being'
        ' brave."',
    )
    return row.noun


def rescue(t: Telling) -> str:
    """A small stranger is in trouble and gets help."""
    h, row = t.child(), t.pick(RESCUES)
    e = t.elder()
    introduce(t, h)
    t.say(
        f"{DAY}, {h} was {row.place} with {h.his} {e} when {h.he} heard {row.sound}.",
        f"{DAY}, {h} was playing {row.place}. [Suddenly|All at once], {h.he} heard {row.sound}.",
    )
    t.say(
        f'"[What|Who] was that?" {h} [asked|said]. {row.trouble}.', f"{h} [turned around|ran to look]. {row.trouble}."
    )
    t.say(f"{row.hopeless}.")
    t.paragraph()
    t.say(
        f'"[Oh no|Oh dear|Poor {row.noun}]!" said {h}. "[I must|We must|I want to] help you."',
        f'"[Do not be afraid|Stay calm|Wait here], little {row.noun}," said {h} [softly|in a soft voice]. "I will'
        ' help you."',
    )
    t.maybe(
        0.5,
        f"{h} [reached out|tried it] with [one hand|both hands], but {h.he} was too small to do it alone.",
        f"At first {h} did not know what to do. {h.He} [looked around|scratched {h.his} head|thought hard].",
    )
    t.say(
        f'{h} ran to {h.his} {e}. "[Please come|Come quick|Please help]! We need {row.need}," {h.he}'
        " [said|called|cried].",
        f'{h} called {h.his} {e}. "I have an idea," {h.he} said. "[All we need is|We need] {row.need}."',
    )
    t.say(
        f"{h.His} {e} [brought|found|got] {row.need} [at once|in no time|right away].",
        f'"[Good thinking|What a good idea|Good idea]," said {h.his} {e} and [brought|found|got] {row.need}.',
    )
    t.say(f"Very [slowly|gently|carefully], {h} {row.deed}.", f"Together they went back, and {h} {row.deed}.")
    t.paragraph()
    t.say(
        f"The {row.noun} was [free|safe|well] [again|at last]. It {row.thanks}.",
        f"The {row.noun} {row.thanks}, as if to say thank you.",
    )
    t.say(
        f'"[Goodbye|Take care|Be careful], little {row.noun}!" said {h} and {CHEERED}.',
        f'"[You were very kind|I am proud of you|You did well]," said {h.his} {e}.',
        f"{h} felt {HAPPY} and [warm inside|waved goodbye].",
    )
    t.say(
        f"[The next day|A week later|Some days later], {h} came back, and the {row.noun} was [there|waiting] to say"
        " hello.",
        f"{AFTER}, {h} went to look for the {row.noun} [every day|every morning|very often], and they were friends.",
        f"{h} told [everyone|the whole family|{h.his} friends] about the {row.noun}. It felt good to be kind.",
    )
    return row.noun


def race(t: Telling) -> str:
    """The fast one boasts and dawdles; the slow one keeps going. Or the leader stops to help."""
    h = t.animal()
    f, place = t.animal(h), t.pick(PLACES)
    prize = t.pick(("golden cup", "basket of apples", "blue ribbon", "big cake", "silver medal", "jar of honey"))
    introduce(t, h)
    t.say(
        f"{DAY}, there was a big race {place.at}. The prize was a {prize}.",
        f"{DAY}, the animals had a race {place.at}. The winner would get a {prize}.",
    )
    t.say(f"{h} wanted to win the {prize} [very much|so much|more than anything].", f"How {h} wanted that {prize}!")
    t.paragraph()
    t.say(
        f'"I am the fastest of all," said {f} the {f.kind}. "[Nobody|No one] can [win against|beat] me."',
        f'{f} the {f.kind} laughed. "You are too [slow|small], {h}. I will win [easily|for sure]," {f.he} said.',
    )
    t.say(
        f'"[We will see|I will do my best|I will try]," said {h}.', f"{h} said nothing and [stood at the line|smiled]."
    )
    t.say('"[Ready, steady|One, two, three], go!" called the [owl|old goat|goose|crow].')
    t.say(
        f"{f} ran [like the wind|like a flash] and was [soon far ahead|far ahead in no time].",
        f"{f} [took the lead|was first] [at once|from the start], and {h} ran [far behind|after {f.him}].",
    )
    sight = t.pick(place.sights)
    t.maybe(0.6, f"On the way, they passed {sight} and [a gate|a big stone|a sign].")
    t.paragraph()
    if t.chance(0.5):
        t.say(
            f'"I have [a lot of|so much] time," thought {f}, and {f.he} [lay down to sleep|stopped to eat some berries|'
            f"sat down to look at the clouds] [under a tree|by the road|next to the path].",
        )
        t.say(
            f"But {h} did not stop. Step by step, {h.he} [kept going|ran on|went on].",
            f"{h} was tired, but {h.he} [kept going|ran on|went on], step by step.",
        )
        t.say(
            f"When {f} [looked up|noticed it], {h} was [almost at the end|close to the line]. {f} ran and ran, but"
            " [it was too late|could not catch up].",
        )
        t.paragraph()
        t.say(f"{h} won the race and got the {prize}!", f"{h} was first, and the {prize} went to {h}!")
        t.say(
            f'"I [was too sure of myself|should not have laughed]," said {f}. "You [ran well|are the winner]."',
            f'{f} was [ashamed|sorry]. "You [ran well|are the winner]," {f.he} said.',
        )
        t.say(
            f"{h} smiled and [let {f} hold the {prize}|showed {f} the {prize}]. They became [friends|good friends].",
            f"{h} learned that you do not need to be the fastest. You need to keep going.",
        )
        return prize
    t.say(
        f"[Suddenly|Then], {f} [fell over a stone|stepped into a hole|slipped in the mud] and hurt {f.his} [leg|foot].",
    )
    t.say(
        f'"Ouch!" [cried|called] {f}. "I can not [run|walk] anymore."', f'"[Help|Ouch]! My foot!" [cried|called] {f}.'
    )
    t.say(
        f"{h} could run past and win now. But {h.he} stopped.",
        f"Now {h} was first. {h.He} thought of the {prize}, but then {h.he} turned around.",
    )
    t.say(
        f'"[Hold on to me|Put your arm around me|Lean on me]," said {h}. "We will [go|walk] to the end together."',
        f'{h} helped {f} up. "We will [go|walk] to the end together," {h.he} said.',
    )
    t.paragraph()
    t.say(
        "They came in last, but everyone [clapped|cheered] for them.",
        "Another animal won the race, but everyone [clapped|cheered] for the two of them.",
    )
    t.say(f'"I [was rude|boasted], and you helped me [anyway|all the same]," said {f}. "[Thank you|I am sorry]."')
    t.say(
        f"{h} did not get the {prize}, but {h.he} got a friend, and that was [better|much better|the best prize].",
        f"{h} forgot all about the {prize}. A new friend was [better|worth more] than that.",
    )
    return prize


def finder(t: Telling) -> str:
    """Something found belongs to somebody; giving it back is better than keeping it."""
    h, place = t.hero(), t.pick(PLACES)
    f = t.friend(h)
    noun = t.pick(
        ("purse", "key", "mitten", "ring", "hat", "book", "bell", "lunch box", "scarf", "umbrella", "coin", "map")
    )
    mark = t.pick(("a star", "a heart", "a tiny fish", "a moon", "a leaf", "a bird", "the letter B", "a flower"))
    color = t.pick(COLORS.split("|"))
    introduce(t, h)
    t.say(
        f"{DAY}, {h} went {place.to} and found a {color} {noun} with {mark} on it.",
        f"{DAY}, {h} was {place.at}. Something lay on the ground. It was a {color} {noun} with {mark} on it.",
    )
    t.say(
        f'"[How lovely|What luck|How pretty]!" said {h}. "I want to keep the {noun}."',
        f"{h} [liked|loved] the {noun} at once and [wanted|wished] to keep it.",
    )
    t.paragraph()
    t.say(
        f'But then {h} thought, "[Someone|Somebody] [may|must] be looking for it."',
        f'But {h.his} [mom|dad|grandma|grandpa] always said, "What you find belongs to [someone|somebody]."',
    )
    t.say(
        f'So {h} [walked around|went here and there] and asked [everyone|everybody], "Is this your {noun}?"',
        f'So {h} [called|shouted], "Who has lost a {noun}?"',
    )
    first = t.pick(place.animals)
    t.say(
        f'"[Not me|It is not mine]," said {"an old man" if h.is_child else f"the {first}"}. "[Ask someone else|Mine'
        ' is at home]."',
        f"Nobody {place.at} had [lost it|seen it before].",
    )
    t.say(
        f"[At last|Then|In the end], {h} [met|saw] a {f.kind} who was [crying|looking all around|searching in the"
        " grass].",
        f"[At last|Then|In the end], {h} heard a [quiet|sad] voice. A {f.kind} was sitting there with wet eyes.",
    )
    t.paragraph()
    t.say(
        f'"[What is wrong|Why are you sad|What happened]?" asked {h}. "My name is {f}, and I lost my'
        f' {noun}," said the {f.kind}.',
        f'"My name is {f}," said the {f.kind}. "I lost my {noun}, and [I can not go home without it|it was a gift]."',
    )
    t.say(
        f'"[What does it look like|What is on it]?" asked {h}. "It is {color} and has {mark} on it," said {f}.',
        f'"Does it have {mark} on it?" asked {h}. "[Yes|Yes, it does]! It is {color}," said {f}.',
    )
    t.say(f'"[Then it is yours|Here it is]," said {h} and gave it back.', f"{h} smiled and put it in {f}'s hands.")
    t.paragraph()
    t.say(
        f'"[Thank you|Oh, thank you]!" [cried|said] {f} and {CHEERED}.',
        f'{f} hugged {h}. "You are so [honest|kind]," {f.he} said.',
    )
    if t.chance(0.5):
        meal(t, "they")
    t.say(
        f"{h} did not have the {noun} anymore, but {h.he} had a [new|good] friend and felt {HAPPY}.",
        f"{h} learned that it feels better to give a {noun} back than to keep it.",
        f"{AFTER}, {f} [waved|smiled] at {h} every time they met, and the {noun} was never lost again.",
    )
    return noun
