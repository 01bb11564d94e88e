"""Demo of forgetting: train a small model on four small tasks in turn, with ordinary LoRA and with gorp."""

from gorp.demo.run import DemoResult, DemoSettings, demo_tasks, run_demo


__all__ = ["DemoResult", "DemoSettings", "demo_tasks", "run_demo"]
