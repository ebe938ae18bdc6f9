"""Which device a run uses, and what is installed here."""

import importlib.util

import torch

from dreamkit.errors import InputError


def choose(request: str = "auto") -> torch.device:
    """The device for "auto" (CUDA if there is one, else the CPU), "cpu", "cuda" or "cuda:1". Raises InputError."""
    if request == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(request)
    except RuntimeError as error:
        raise InputError(f"device {request!r} is not a device. Use --device auto, cpu, cuda or cuda:1.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"device {request!r} was asked for, but torch {torch.__version__} sees no CUDA device. Use --device cpu."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {request!r} was asked for, but there are {torch.cuda.device_count()} CUDA devices.")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # for all that names no device, such as the wait for a kernel's end
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {request!r} is not supported; dreamkit runs on cpu and cuda.")
    return device


def others(device: torch.device) -> list[torch.device]:
    """The other devices that a run on `device` may use: for "cuda", which names none, all that CUDA shows."""
    if device.type != "cuda" or device.index is not None:
        return []
    return [torch.device("cuda", index) for index in range(1, torch.cuda.device_count())]


def installed(package: str) -> bool:
    """Whether `package` can be found, without importing it."""
    return importlib.util.find_spec(package) is not None
