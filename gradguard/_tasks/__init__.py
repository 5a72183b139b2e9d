"""Modes across threads and tasks: carry, isolated, isolate_tasks."""
