"""Tasks and their rows: read, checked, cut, encoded.

task.py           Task, and how one is put together
readers.py        TaskSpec → Task: files, hub data sets, benchmark folders
files.py          rows with the place they stand at
formats.py        columns → prompt and completion
cl_benchmark.py   the fifteen published tasks and their prompts
orders.py         the six published orders
split.py          deterministic cuts, and what two sets of rows share
encode.py         text → token ids, batches
"""

from gorp.data.cl_benchmark import load_cl_benchmark, official_prompt
from gorp.data.encode import (
    Collator,
    Encoding,
    encode,
    encode_completion,
    encode_prompt,
    encode_prompts,
    pad_left,
)
from gorp.data.orders import ORDERS
from gorp.data.readers import FORMATS, TaskSpec, load_evaluation, load_task
from gorp.data.split import cut_dev, overlap, same_rows
from gorp.data.task import METRICS, Task, check_names, rows_fingerprint


__all__ = [
    "FORMATS",
    "METRICS",
    "ORDERS",
    "Collator",
    "Encoding",
    "Task",
    "TaskSpec",
    "check_names",
    "cut_dev",
    "encode",
    "encode_completion",
    "encode_prompt",
    "encode_prompts",
    "load_cl_benchmark",
    "load_evaluation",
    "load_task",
    "official_prompt",
    "overlap",
    "pad_left",
    "rows_fingerprint",
    "same_rows",
]
