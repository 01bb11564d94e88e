"""Four small tasks, a small model, two methods: what forgetting looks like, and what remembering looks like."""

from gorp.demo.run import DemoResult, DemoSettings, demo_tasks, run_demo


__all__ = ["DemoResult", "DemoSettings", "demo_tasks", "run_demo"]
