"""The published rules: one constant each. A variant is `dataclasses.replace(SDS, weight=One())`.

Guidance scales count as `diffusion.cfg` does: scale 1 is the conditional prediction, and threestudio's 100 is 101.
"""

from dataclasses import replace

from dreamkit.guidance import levels, noise
from dreamkit.guidance.estimate import (
    Balanced,
    Combination,
    Drawn,
    Guided,
    Latent,
    NoiseFree,
    Nothing,
    PerpNeg,
    Plain,
    Stable,
)
from dreamkit.guidance.levels import Above, At, Below, Uniform
from dreamkit.guidance.noise import Fresh, Inverted, Simulated
from dreamkit.guidance.post import NormalizeBatch
from dreamkit.guidance.rule import Rule
from dreamkit.guidance.student import Student
from dreamkit.guidance.weight import Alpha, One, SigmaOverAlpha, SigmaSquared
from dreamkit.schedule import DreamTime, Linear, Sqrt, Switch

SDS = Rule(Uniform(0.02, 0.98), Fresh(), trust=Guided(101.0), subtract=Drawn(), weight=SigmaSquared())
"""Score Distillation Sampling (DreamFusion, arXiv:2209.14988, eq. 3)."""

SDS_ANNEALED = replace(SDS, levels=Uniform(0.02, Linear(0.98, 0.3)))
"""SDS whose highest level comes down over the run: fewer faces, finer detail (StableDreamer, arXiv:2312.02189)."""

SDS_DREAMTIME = replace(SDS, levels=At(DreamTime()))
"""SDS at levels that only come down, most slowly in the middle (DreamTime, arXiv:2306.12422)."""

SDS_PERP_NEG = replace(SDS, trust=PerpNeg(101.0))
"""SDS away from the negative prompt, but never against the prompt (Perp-Neg, arXiv:2304.04968)."""

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

STABLE_SD = replace(SDS, trust=Stable(), subtract=Nothing())
"""Stable Score Distillation (arXiv:2312.09305), from others' code: its threshold is not confirmed."""

ASD = Rule(
    Above(Uniform(Linear(0.5, 0.02), Linear(0.98, 0.5)), start=Linear(0.5, 0.02)),
    Fresh(),
    trust=Guided(7.5),
    subtract=Plain("prompt", level="upper"),
    weight=SigmaSquared(),
)
"""Asynchronous Score Distillation (ScaleDreamer, arXiv:2407.02040): a noisier level instead of VSD's student."""

_INTERVAL = Below(Uniform(0.02, Linear(0.98, 0.5, until=0.3), "batch"), gap=Linear(0.1, 0.08, until=0.3))

ISM = Rule(
    _INTERVAL,
    Inverted(),
    trust=Guided(7.5, against="negative"),
    subtract=Plain("null", level="lower"),
    weight=SigmaOverAlpha(),
)
"""Interval Score Matching (LucidDreamer, arXiv:2311.11284): two levels of one inverted path."""

TSM = replace(ISM, levels=replace(_INTERVAL, gamma=0.3), subtract=Plain("null", level="middle"))
"""Trajectory Score Matching (Dreamer XL, arXiv:2405.11252): ISM whose two samples leave the path at one point."""

CSM = replace(ISM, trust=Plain("prompt"), subtract=Plain("null"))
"""Classifier Score Matching (TV-3DG, arXiv:2410.21299): CSD on an inverted sample. Derived from the abstract."""

SDI = Rule(
    At(Linear(0.98, 0.25)),
    Inverted(stride=0.1, steps=None, scale=-7.5, start=False, eta=0.3, beyond=0.1),
    trust=Guided(7.5),
    subtract=Drawn(),
    weight=SigmaOverAlpha(),
)
"""Score Distillation via Inversion (arXiv:2405.15891): SDS with the noise that DDIM would have used."""

CDS = Rule(
    levels.Stepped(At(Sqrt(0.7, 0.1))),
    noise.Stepped(Linear(101.0, 51.0)),
    trust=Guided(Linear(101.0, 51.0)),
    subtract=Guided(Linear(101.0, 51.0), level="lower"),
    weight=One(),
)
"""Consistency Distillation Sampling (Consistent3D, arXiv:2401.09050), with the sign of its code, which contracts."""

DIVERSE_SD = Rule(
    Above(At(Sqrt(0.98, 0.32))),
    Simulated(7.5),
    trust=Guided(7.5),
    subtract=Plain("prompt", level="upper"),
    weight=SigmaSquared(),
)
"""Diverse Score Distillation (arXiv:2412.06780): the noise of the sampling path that the seed begins."""

VSD = Rule(Uniform(0.02, Switch(0.98, 0.5, 0.2)), Fresh(), trust=Guided(7.5), subtract=Student(), weight=SigmaSquared())
"""Variational Score Distillation (ProlificDreamer, arXiv:2305.16213): a student knows the scene's own pictures."""

ESD = replace(VSD, subtract=Student(scale=0.5))
"""Entropic Score Distillation (Taming Mode Collapse, arXiv:2401.00909): VSD whose student half forgets the camera."""

BALANCED_SD = Rule(Uniform(per="batch"), Fresh(), trust=Balanced(15.0), subtract=Nothing(), weight=Alpha())
"""Balanced Score Distillation (PlacidDreamer, arXiv:2407.13976): the shortest mix of guidance and denoising."""

DDS = Rule(
    Uniform(0.05, 0.948),
    Fresh(),
    trust=Guided(7.5),
    subtract=Guided(7.5, "source", image="source"),
    weight=One(),
)
"""Delta Denoising Score (arXiv:2304.07090): an edit is the difference to the source's own score."""

PDS = Rule(
    Below(Uniform(), gap=0.002),
    Fresh(),
    trust=Latent(100.0, identity=0.03),
    subtract=Latent(100.0, "source", image="source", identity=0.03),
    weight=One(),
)
"""Posterior Distillation Sampling (arXiv:2311.13831): DDS weighted by the posterior, with a pull to the source."""
