"""Check the rows of a task before anything is trained, in bounded memory: `gorp add` and `gorp validate`.

scan.py          read the rows of a task once
overlaps.py      training rows that ask what eval rows ask
shared_prompts.py  prompts that the training rows of two tasks share
token_counts.py  tokens of rows against the limits; which tokens of a row are trained
lengths.py       check row lengths against the positions of the model
report.py        what was found in the rows of tasks
"""
