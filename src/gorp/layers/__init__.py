"""Modules attached to layers while a task is trained (LoRA pairs, cores, watches), and the choice of layers."""
