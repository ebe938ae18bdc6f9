"""Numbers from pictures [B, 3, H, W] in [0, 1]."""

import torch
from torch import Tensor


def saturation(rgb: Tensor, alpha: Tensor) -> float:
    """Mean of (max - min) / max over the object's pixels (alpha above 1/2), as in HSV; 0 for grey, 1 for pure colours.

    Score distillation with large guidance scales is known for pushing it up. 0 if there is no object.
    """
    most, least = rgb.amax(1), rgb.amin(1)
    inside = alpha[:, 0] > 0.5
    values = ((most - least) / most.clamp(min=1e-6))[inside]
    return float(values.double().mean()) if len(values) else 0.0


def colour_error(rgb: Tensor, truth: Tensor, alpha: Tensor, true_alpha: Tensor) -> float:
    """Root mean square difference of colour over the pixels that both objects cover; nan if there are none."""
    both = (alpha[:, 0] > 0.5) & (true_alpha[:, 0] > 0.5)
    error = (rgb - truth).square().mean(1)[both]
    return float(error.double().mean().sqrt()) if len(error) else float("nan")


def diversity(pictures: Tensor) -> float:
    """How much several seeds' pictures of one thing differ: the mean root mean square distance of all pairs.

    pictures [S, ...]: what each of S >= 2 seeds made, from the same cameras. 0 if all are the same.
    """
    if len(pictures) < 2:
        raise ValueError(f"diversity compares at least two seeds; got {len(pictures)}")
    flat = pictures.flatten(1).double()
    first, second = torch.triu_indices(len(flat), len(flat), offset=1)
    return float((flat[first] - flat[second]).square().mean(1).sqrt().mean())
