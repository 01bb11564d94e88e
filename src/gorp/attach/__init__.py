"""Protect earlier tasks in a training loop that is not gorp's own: Hugging Face's Trainers, TRL's, or a plain loop.

protection   `Protection`: the object that a user passes as a callback, or calls from a loop
steps        the five calls of a training loop, on which the callback is written
pairs        LoRA pairs that the user's own PEFT adapter brings
start        a first task that was learned elsewhere: a PEFT adapter, or a fine-tuned model
adapter      reads a PEFT adapter from its folder
rates        learning rates and weight decays of a method, in an optimizer that the user's Trainer made
rows         batches of the task's rows from the user's data loader
checks       what cannot work, refused before the first step
resume       the method's part of a Trainer's checkpoint, and whose checkpoint it is
folder       versions of a protection folder
terminal     the bar while rows are read; what was saved, and what was not
trackers     `cl/...` metrics in the trackers that `report_to` names
"""

from gorp.attach.protection import Protection


__all__ = ["Protection"]
