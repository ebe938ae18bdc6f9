"""Several views of one object, seen together by a UNet of single pictures (MVDream, arXiv:2308.16512, section 3.1).

Its self-attention looks at the pixels of all views at once; everything else treats each view by itself. So the weights
have the shapes of the single-view network's, and may begin as a copy of them.
"""

from typing import Any

from torch import Tensor, nn


def see_together(unet: Any, views: int) -> None:
    """From now on the UNet takes batches of objects in a row, of `views` samples each. 1 makes it what it was."""
    for name, module in unet.named_modules():
        if name.endswith("attn1"):  # diffusers' name for self-attention
            if not hasattr(module, "together"):
                module.register_forward_pre_hook(_join, with_kwargs=True)
                module.register_forward_hook(_part)
            module.together = views


def _join(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """[objects * views, pixels, C] -> [objects, views * pixels, C]."""
    seen: Tensor = inputs[0] if inputs else named["hidden_states"]
    views = int(module.together)  # type: ignore[arg-type]
    if len(seen) % views:
        raise ValueError(f"a network of {views} views together was given {len(seen)} samples")
    joined = seen.reshape(-1, views * seen.shape[1], seen.shape[2])
    return ((joined, *inputs[1:]), named) if inputs else (inputs, {**named, "hidden_states": joined})


def _part(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    views = int(module.together)  # type: ignore[arg-type]
    return output.reshape(-1, output.shape[1] // views, output.shape[2])
