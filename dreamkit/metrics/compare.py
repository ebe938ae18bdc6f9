"""How far the exported mesh is from the scene it was made from, measured in pictures of both from the same cameras."""

from dataclasses import dataclass

from torch import Tensor

from dreamkit.images import Images


@dataclass(frozen=True)
class Comparison:
    psnr: float
    """Decibels, over all pixels, background included; inf for equal pictures."""
    iou: float
    """Of the silhouettes, over all views; 1 for equal ones."""

    def __str__(self) -> str:
        return f"PSNR {self.psnr:.1f} dB, silhouette IoU {self.iou:.3f}"


def compare(scene: Images, mesh: Images) -> Comparison:
    """The scene's renders against the mesh's, from the same cameras and on the same background."""
    return Comparison(psnr(scene.rgb, mesh.rgb), silhouette_iou(scene.alpha, mesh.alpha))


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio -10 log10(mean((a - b)^2)) in decibels, for values in [0, 1] of any one shape."""
    if a.shape != b.shape:
        raise ValueError(f"psnr compares pictures of one shape; got {tuple(a.shape)} and {tuple(b.shape)}")
    error = (a.double() - b.to(a.device).double()).square().mean()
    return float(-10 * error.log10())


def silhouette_iou(a: Tensor, b: Tensor) -> float:
    """Pixels where both alphas are above 0.5, over pixels where either is; 1 if neither is anywhere."""
    if a.shape != b.shape:
        raise ValueError(f"silhouette_iou compares alphas of one shape; got {tuple(a.shape)} and {tuple(b.shape)}")
    first, second = a > 0.5, b.to(a.device) > 0.5
    either = int((first | second).sum())
    return int((first & second).sum()) / either if either else 1.0
