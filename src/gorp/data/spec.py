"""One entry of `tasks:`: where a task's rows are, and in which format."""

from dataclasses import dataclass, field
from typing import Annotated

from gorp.data.formats import ANSWERS, TURNS
from gorp.data.rows import names
from gorp.data.task import METRICS, check_names
from gorp.data.templates import Template
from gorp.errors import ConfigError, nearest, shown
from gorp.ranges import COUNT, NOT_NEGATIVE, check_ranges


FORMATS = ("auto", *ANSWERS, *TURNS, "cl_benchmark")


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One entry of `tasks:`: where a task's rows are, and in which format.

    Raises:
        ConfigError: If a value is invalid, before any file is read.

    Example:
        >>> from gorp import TaskSpec
        >>> TaskSpec(name="october", train="october.jsonl", metric="label_ranking").eval is None  # split off train
        True
    """

    name: str
    """Unique; letters, digits, dot, underscore, hyphen."""
    train: str
    """A .jsonl, .json, .csv, .tsv or .parquet file, a folder, or the id of a hub data set."""
    eval: str | None = None
    """The same for the evaluation rows. None: `eval_split` is used; if that is None too, rows are split off train."""
    format: str = "auto"
    """One of `FORMATS`; `auto` detects it from the first row."""
    subset: str | None = None
    """For a hub data set or a folder: name of its configuration."""
    split: str | None = None
    """For a hub data set or a folder: the split to train on; None for `train`."""
    eval_split: str | None = None
    """For a hub data set or a folder: the split with the evaluation rows, of `eval` or, if that is None, of `train`."""
    columns: dict[str, str] = field(default_factory=dict)
    """Columns to rename, {name in the file: new name}, for example {review: text}."""
    template: str | None = None
    """For `text_label` and `alpaca`: the prompt, with columns in braces, `?` after one that may be blank, and
    `{labels}` for the label set."""
    labels: list[str] | None = None
    """The closed label set, in the order in which the prompt lists it. For `text_label`, None collects it from the
    training rows."""
    metric: str | None = None
    """`exact_match` (None) or `label_ranking`."""
    dev_rows: Annotated[int, NOT_NEGATIVE] = 0
    """Rows split off train for a dev set, at most a fifth of train; 0 for none."""
    limit_train: Annotated[int, COUNT] | None = None
    """Rows of train to keep, balanced over the labels; None for all."""
    limit_eval: Annotated[int, COUNT] | None = None
    """Rows of eval to keep, balanced over the labels; None for all."""
    task_name_in_prompt: bool = False
    """CL benchmark only: begin the prompt with the task's name."""

    def __post_init__(self) -> None:
        check_names([self.name])
        for option, value, known in (("format", self.format, FORMATS), ("metric", self.metric or METRICS[0], METRICS)):
            if value not in known:
                wanted = f"wanted one of {', '.join(known)}.{nearest(value, known)}"
                raise ConfigError(f"task {self.name}: {option} `{shown(value)}` is unknown; {wanted}")
        check_ranges(self, f"task {self.name}: ")
        self._check_labels()
        if self.template is not None:
            Template(self.template)

    def _check_labels(self) -> None:
        if self.labels is None:
            return
        for label in self.labels:
            if not isinstance(label, str) or not label.strip():
                hint = "Write quotes around words like true, no and 1."
                raise ConfigError(f"task {self.name}: label {label!r} is blank or not text. {hint}")
        if not self.labels or len(set(self.labels)) < len(self.labels):
            found = names(self.labels)
            raise ConfigError(f"task {self.name}: labels are {found}; wanted at least one label, and no label twice.")

    def refuse_unused(self, source: str, *options: str) -> None:
        """Check that none of `options` is set, because they would be ignored for `source`.

        Raises:
            ConfigError: If one is.
        """
        for option in options:
            if getattr(self, option):
                raise ConfigError(f"task {self.name}: `{option}` is not used for `{source}`. Remove it.")
