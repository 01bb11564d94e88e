"""The shared space S as a method carries it: its bases, what is known of each task, and the report on the newest."""
