"""What is put on a layer while a task is trained, and which layers: LoRA pairs, cores, watches."""
