"""Numbers between pictures, by hand."""

import math

import pytest
import torch

from dreamkit.images import Images
from dreamkit.metrics.compare import compare, psnr, silhouette_iou


def test_psnr_by_hand() -> None:
    a = torch.full((2, 3, 4, 4), 0.5)
    assert psnr(a, a + 0.1) == pytest.approx(20, abs=1e-4)  # 10 log10(1 / 0.01); float32 holds 0.1 to 1e-8
    half = a.clone()
    half[0] += 0.1  # half of the squared error: 3.01 dB more
    assert psnr(a, half) == pytest.approx(20 + 10 * math.log10(2), abs=1e-4)
    assert psnr(a, a) == math.inf


def test_silhouettes_by_hand() -> None:
    a, b = torch.zeros(1, 1, 1, 6), torch.zeros(1, 1, 1, 6)
    a[..., :4], b[..., 2:5] = 0.9, 0.6
    assert silhouette_iou(a, b) == 2 / 5
    assert silhouette_iou(a * 0, b * 0) == 1


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        psnr(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="one shape"):
        silhouette_iou(torch.zeros(1, 1, 4, 4), torch.zeros(2, 1, 4, 4))


def test_a_comparison_reads_as_a_sentence() -> None:
    a = Images(torch.zeros(1, 3, 2, 2), torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    b = Images(torch.full((1, 3, 2, 2), 0.1), torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    assert str(compare(a, b)) == "PSNR 20.0 dB, silhouette IoU 1.000"
