"""Two flags in a token of a conversation: whether its prediction is trained, and whether a conversation starts with it.

tokens = ids | LOSS * trained | FIRST * first        # how data/instruct/{train,val} hold them, 32 bits each
ids, trained, first = tokens & ID, tokens & LOSS, tokens & FIRST

A token set without flags is one in which every token is trained and documents end with the EOS token.
"""

LOSS = 1 << 30
FIRST = 1 << 29
ID = FIRST - 1
