"""Batches of a task's rows from the data loader of the user's training."""

from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from gorp.core.outputs import IGNORED, Batch
from gorp.errors import ConfigError
from gorp.layers.inputs import BATCH, LOOKED_AT, rows_at_once


def row_batches(
    loader: DataLoader[Any], *, seed: int, device: torch.device
) -> Callable[[int, int | None], Iterator[Batch]]:
    """Return `TaskContext.batches` for the rows of a data loader.

    The rows are drawn by `seed` without replacement, collated by the loader's own function. From an iterable data set,
    which cannot be drawn from, they are the first ones. Reading does not change the order of the loader's own batches.

    Args:
        loader: The training loader; each rank has one over the same rows.
        seed: Seed of the draw.
        device: Device of the model.

    Raises:
        ConfigError: If `loader` is no data loader, or the rows have no labels, so that nothing shows which tokens an
            answer depends on.
    """
    if not isinstance(loader, DataLoader):
        raise ConfigError(
            f"rows is a {type(loader).__name__}; wanted a torch.utils.data.DataLoader whose batches are keyword "
            "arguments of the model, with `labels`."
        )
    dataset, collate = loader.dataset, loader.collate_fn
    first = _first(loader)
    if isinstance(dataset, IterableDataset) and not _first(loader):
        raise ConfigError(
            "the training data can be read only once, and gorp reads rows before and after the training too. Give a "
            "data set whose iteration can begin again."
        )
    labels = first.get("labels") if isinstance(first, Mapping) else None  # a tokenizer's BatchEncoding is no dict
    if not isinstance(labels, torch.Tensor):
        has = ", ".join(map(str, first)) if isinstance(first, Mapping) else type(first).__name__
        raise ConfigError(
            f"a batch of the training rows has no `labels` (it has {has}), and gorp needs them to read which inputs "
            "the answers depend on. Give the data set or the collator labels, with -100 where there is no loss."
        )

    def rows(limit: int | None) -> Iterator[Any]:
        if isinstance(dataset, IterableDataset):
            yield from islice(iter(dataset), limit)
            return
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()  # pyright: ignore[reportArgumentType]
        yield from (dataset[i] for i in order[:limit])

    def batches(size: int, limit: int | None) -> Iterator[Batch]:
        source, any_row = rows(limit), False
        head = list(islice(source, LOOKED_AT))
        source, size = chain(head, source), rows_at_once(size, head)
        while chunk := list(islice(source, size)):
            batch: Any = collate(chunk)
            found = {key: value.to(device) for key, value in batch.items() if isinstance(value, torch.Tensor)}
            if (found["labels"] != IGNORED).any():  # without a label the loss of a model is nan
                any_row = True
                yield found
        if not any_row:
            raise ConfigError(
                "no row of the training data has a label that is not -100, so nothing shows what the task needs. Were "
                "all answers cut off (`max_length`)?"
            )

    next(batches(BATCH, None))  # raises now, not after the training, if no row has a label
    return batches


def _first(loader: DataLoader[Any]) -> Any:
    """Return the first row, collated; {} if there is none."""
    dataset = loader.dataset
    chunk = list(islice(iter(dataset), 1)) if isinstance(dataset, IterableDataset) else [dataset[0]]
    return loader.collate_fn(chunk) if chunk else {}
