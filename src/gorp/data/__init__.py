"""Tasks and their rows: read, checked, cut, encoded.

task.py           Task, and how one is put together
readers.py        TaskSpec → Task: files, hub data sets, benchmark folders
files.py          rows with the place they stand at
formats.py        columns → prompt and completion
chat.py           conversation → prompt and completion, through the model's chat template
form.py           what stands around an answer
cl_benchmark.py   the fifteen published tasks and their prompts
orders.py         the six published orders
split.py          deterministic cuts, and what two sets of rows share
tokens.py         text → token ids
encode.py         rows → token ids
collate.py        token ids → batches
"""

from gorp.data.cl_benchmark import load_cl_benchmark, official_prompt
from gorp.data.collate import Collator, pad_left
from gorp.data.encode import (
    Encoding,
    encode,
    encode_completion,
    encode_completions,
    encode_prompt,
    encode_prompts,
)
from gorp.data.form import PLAIN, Form, forms_of
from gorp.data.orders import ORDERS
from gorp.data.readers import FORMATS, TaskSpec, load_evaluation, load_task
from gorp.data.split import cut_dev, overlap, same_rows
from gorp.data.task import METRICS, Task, check_names, rows_fingerprint


__all__ = [
    "FORMATS",
    "METRICS",
    "ORDERS",
    "PLAIN",
    "Collator",
    "Encoding",
    "Form",
    "Task",
    "TaskSpec",
    "check_names",
    "cut_dev",
    "encode",
    "encode_completion",
    "encode_completions",
    "encode_prompt",
    "encode_prompts",
    "forms_of",
    "load_cl_benchmark",
    "load_evaluation",
    "load_task",
    "official_prompt",
    "overlap",
    "pad_left",
    "rows_fingerprint",
    "same_rows",
]
