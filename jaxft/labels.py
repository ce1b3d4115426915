"""Labels of tokens that mean the same to those who write them and to those who learn from them."""

NO_LABEL = -100  # of a token that is not learned: what torch and transformers leave out
START, END = 1, 2  # of the first and the last token of an answer; they add up where it is one token
