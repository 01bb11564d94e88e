"""Write what gorp trained in the forms that serving stacks take: a merged model folder, or a PEFT LoRA adapter.

folder.py    where an export may be written; the folder appears complete or not at all
merged.py    round(W₀ + delta) of every weight, as a Hugging Face folder
lowrank.py   the best factors of a delta at a rank, and their exact error; the ranks that servers take
adapter.py   a PEFT adapter folder that vLLM, llama.cpp and PEFT read
check.py     compare the written folder, read back by transformers or PEFT, with the live model
wording.py   sentences about the facts of an export
card.py      the model card
push.py      upload to the Hugging Face hub

This package knows models and deltas, not workspaces; `gorp.workspace.export` brings the two together.
"""
