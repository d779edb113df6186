"""The domains that the readers of `rl/data` give their problems.

Rewards are chosen by domain.  Whatever the domain, a problem with `choices` is answered by a letter, and one with
`tests` by a program.
"""

CHECKED = (
    "math",  # a number
    "code",  # a Python program, judged by tests
    "science",  # school and university science, multiple choice
    "knowledge",  # everything else that exams ask, multiple choice
    "logic",  # an argument and what follows from it, multiple choice
    "span",  # a few words found in the text that is asked about
)
OPEN = (
    "summary",  # of an article: `answer` is a summary somebody wrote, one of many
    "dialogue",  # a summary of a conversation, likewise
    "creative",  # `answer` is empty
)
