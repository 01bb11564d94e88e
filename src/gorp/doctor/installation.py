"""Check Python, the installed packages, the devices that torch sees, and the cache of the hub."""

import os
import platform
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from gorp.doctor.finding import Finding, free_bytes, run, size


FEW_BYTES = 2 * 2**30
"""Below this many free bytes in the hub's cache, a download of a model is likely to fail."""

REINSTALL = "Install gorp again in a new environment: `pip install -e .` in its clone."


def check_installation() -> Iterator[Finding]:
    """Yield what is found of the installation. torch is imported; no process or file is changed."""
    yield from run("python", _python)
    yield from run("packages", _packages)
    yield from run("torch", _torch)
    yield from run("hub cache", _cache)


def _python() -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    says = f"{platform.python_version()}, {platform.machine()}, {platform.system()}"
    wanted = metadata.metadata("gorp")["Requires-Python"]
    if not SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
        yield Finding("problem", "python", f"{says}; gorp needs {wanted}", "Use another Python.")
    else:
        yield Finding("ok", "python", says)


def _packages() -> Iterator[Finding]:
    """Compare the installed versions with the ranges in the package's metadata; optional ones only if installed."""
    from packaging.requirements import Requirement

    checked, wrong = 0, 0
    for text in metadata.requires("gorp") or ():
        wanted = Requirement(text)
        optional = wanted.marker is not None and not wanted.marker.evaluate({"extra": ""})
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            if not optional:
                wrong += 1
                says = f"{wanted.name} is not installed; gorp needs {wanted.specifier or 'it'}"
                yield Finding("problem", "packages", says, REINSTALL)
            continue
        if wanted.name == "gorp":  # an extra of gorp that names another
            continue
        checked += 1
        if not wanted.specifier.contains(found, prereleases=True):
            wrong += 1
            level = "warning" if optional else "problem"
            advice = f'`pip install "{wanted.name}{wanted.specifier}"`'
            yield Finding(level, "packages", f"{wanted.name} is {found}; gorp works with {wanted.specifier}", advice)
    if not wrong:
        yield Finding("ok", "packages", f"{checked} packages are in the ranges of gorp {metadata.version('gorp')}")


def _torch() -> Iterator[Finding]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a driver that is too old; what counts is whether there is a device
        try:
            import torch
        except Exception as error:
            says = f"cannot be imported ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            yield Finding("problem", "torch", says, REINSTALL)
            return
        there = torch.cuda.is_available()
        devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())] if there else []
        threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
        yield Finding("ok", "torch", f"{torch.__version__}, {'on a GPU' if devices else f'on the CPU, {threads}'}")
        if torch.version.cuda and not devices:
            yield Finding(
                "warning",
                "torch",
                f"is built for CUDA {torch.version.cuda}, but sees no GPU; training runs on the CPU",
                "Check the driver with `nvidia-smi`, and CUDA_VISIBLE_DEVICES.",
            )
        if len(devices) > 1:
            yield Finding(
                "warning",
                "torch",
                f"sees {len(devices)} GPUs, but `gorp train` uses one",
                "Set CUDA_VISIBLE_DEVICES=0, or another single number.",
            )
        for device in devices or [torch.device("cpu")]:
            yield from run(str(device), lambda device=device: [_device(torch, device)])


def _device(torch: Any, device: Any) -> Finding:
    """Say what a device is, and whether a product of bfloat16 matrices is right on it."""
    ones = torch.ones(16, 16, dtype=torch.bfloat16, device=device)
    works = bool((ones @ ones == 16).all())  # (16, 16) @ (16, 16)
    if device.type == "cpu":
        says = "bfloat16 works" if works else "bfloat16 gives wrong products"
        return Finding("ok" if works else "warning", "cpu", says, "" if works else "Use `model.dtype: float32`.")
    free, total = torch.cuda.mem_get_info(device)
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    says = f"{torch.cuda.get_device_name(device)}, {size(free)} of {size(total)} free, bfloat16 "
    if works and native:
        return Finding("ok", str(device), says + "works")
    says += "is emulated, and slow" if works else "gives wrong products"
    return Finding("warning", str(device), says, "Use `model.dtype: float32`, without `training.bf16`.")


def _cache() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    place = next(path for path in (cache, *cache.parents) if path.exists())
    free = free_bytes(cache)
    if not os.access(place, os.W_OK | os.X_OK):
        says = f"{cache}: cannot be written, so no model can be downloaded"
        yield Finding("warning", "hub cache", says, "Allow writing there, or set HF_HOME to another folder.")
    elif free < FEW_BYTES:
        says = f"{cache}: only {size(free)} free on its disk"
        yield Finding("warning", "hub cache", says, "Free some space, or set HF_HOME to another disk.")
    else:
        yield Finding("ok", "hub cache", f"{cache}, {size(free)} free")
