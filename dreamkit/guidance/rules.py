"""The published rules: one constant each. A variant is `dataclasses.replace(SDS, weight=One())`.

Guidance scales count as `diffusion.cfg` does: scale 1 is the conditional prediction, and threestudio's 100 is 101.
"""

from dataclasses import replace

from dreamkit.guidance.estimate import Combination, Drawn, Guided, NoiseFree, Nothing, Plain
from dreamkit.guidance.levels import Uniform
from dreamkit.guidance.noise import Fresh
from dreamkit.guidance.post import NormalizeBatch
from dreamkit.guidance.rule import Rule
from dreamkit.guidance.weight import One, SigmaSquared
from dreamkit.schedule import Linear

SDS = Rule(Uniform(0.02, 0.98), Fresh(), trust=Guided(101.0), subtract=Drawn(), weight=SigmaSquared())
"""Score Distillation Sampling (DreamFusion, arXiv:2209.14988, eq. 3)."""

SDS_ANNEALED = replace(SDS, levels=Uniform(0.02, Linear(0.98, 0.3)))
"""SDS whose highest level comes down over the run: fewer faces, finer detail (StableDreamer, arXiv:2312.02189)."""

SJC = replace(SDS, levels=Uniform(0.01, 0.97), weight=One())
"""Score Jacobian Chaining (arXiv:2212.00774): SDS with weight 1, met from the side of the score."""

CSD = replace(SDS, trust=Plain("prompt"), subtract=Plain("null"))
"""Classifier Score Distillation (arXiv:2310.19415): the guidance term alone, so a scale would only be a step size."""

CSD_NEGATIVE = replace(
    SDS,
    levels=Uniform(0.02, Linear(0.98, 0.5)),
    trust=Combination(prompt=1.0, negative=Linear(0.0, -1.0, until=0.5), null=Linear(-1.0, 0.0, until=0.5)),
    subtract=Nothing(),
    weight=One(),
    post=(NormalizeBatch(),),
)
"""CSD that moves from the null to the negative prompt in the first half, with the gradient's norm taken out."""

NFSD = replace(SDS, trust=NoiseFree(7.5), subtract=Nothing())
"""Noise-Free Score Distillation (arXiv:2310.17590). It wants a negative prompt; with none it is CSD above k = 0.57."""

NFSD_NEGATIVE = "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"
"""What NFSD's authors gave as the negative prompt, to stand for the noise part at high levels (a negative prompt)."""
