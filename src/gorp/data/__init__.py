"""Read, check, split and encode the rows of tasks.

task.py           Task, and building one from rows
spec.py           TaskSpec: one entry of `tasks:`
readers.py        TaskSpec → Task: files, hub data sets, benchmark folders
source.py         the rows of a task's train or eval, one by one
rows.py           a row with its file and line, and checks of its text
files.py          rows of a file; JSON
tables.py         rows of CSV, TSV and Parquet
folders.py        the files of a local folder
formats.py        columns → prompt and completion
templates.py      prompts from columns
turns.py          the turns of a chat in either format
chat.py           conversation → prompt and completion, through the model's chat template
form.py           the text around an answer
layout.py         the prompt of a question, as a learned task made its prompts
cl_benchmark.py   the fifteen published tasks and their prompts
orders.py         the six published orders
split.py          deterministic splits, and overlap of two sets of rows
tokens.py         text → token ids
encode.py         rows → token ids
collate.py        token ids → batches
"""

from gorp.data.cl_benchmark import load_cl_benchmark, official_prompt
from gorp.data.collate import Collator, pad_left
from gorp.data.encode import Encoding, encode, encode_completions, encode_prompts
from gorp.data.form import PLAIN, Form, forms_of
from gorp.data.orders import ORDERS
from gorp.data.readers import load_evaluation, load_task
from gorp.data.spec import FORMATS, TaskSpec
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
    "encode_completions",
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
