"""The published rules: one constant each. A variant is `dataclasses.replace(SDS, weight=One())`.

Guidance scales count as `diffusion.cfg` does: scale 1 is the conditional prediction, and threestudio's 100 is 101.
"""

from dataclasses import replace

from dreamkit.guidance import levels, localized, noise
from dreamkit.guidance.attached import Attached
from dreamkit.guidance.bootstrap import Companion, Personal
from dreamkit.guidance.corrective import Corrected
from dreamkit.guidance.discriminator import Divergence
from dreamkit.guidance.estimate import (
    Balanced,
    Combination,
    Denoised,
    Drawn,
    Guided,
    LaidOut,
    Latent,
    NoiseFree,
    Nothing,
    PerpNeg,
    Plain,
    Stable,
)
from dreamkit.guidance.facing import PerpNegViews
from dreamkit.guidance.levels import Above, At, Below, Uniform
from dreamkit.guidance.mapper import Mapped
from dreamkit.guidance.noise import Fresh, Inverted, Simulated
from dreamkit.guidance.post import Clamp, NormalizeBatch
from dreamkit.guidance.regions import Regions
from dreamkit.guidance.repulsion import Repelled
from dreamkit.guidance.rule import Rule
from dreamkit.guidance.student import Student
from dreamkit.guidance.together import Category, Halves, Jointly
from dreamkit.guidance.weight import Alpha, One, SigmaOverAlpha, SigmaSquared
from dreamkit.schedule import DreamTime, Linear, Polyline, Sigmoid, Sqrt, Switch

SDS = Rule(Uniform(0.02, 0.98), Fresh(), trust=Guided(101.0), subtract=Drawn(), weight=SigmaSquared())
"""Score Distillation Sampling (DreamFusion, arXiv:2209.14988, eq. 3)."""

SDS_ANNEALED = replace(SDS, levels=Uniform(0.02, Linear(0.98, 0.3)))
"""SDS whose highest level comes down over the run: fewer faces, finer detail (StableDreamer, arXiv:2312.02189)."""

SDS_DREAMTIME = replace(SDS, levels=At(DreamTime()))
"""SDS at levels that only come down, most slowly in the middle (DreamTime, arXiv:2306.12422)."""

HIFA = replace(SDS, levels=At(Sqrt(0.98, 0.3)), trust=Denoised(100.0, eta=1.0), weight=SigmaOverAlpha())
"""HiFA (arXiv:2305.18766): at levels that only come down, an L2 loss to a picture denoised in several steps.

Its second loss, of decoded latents (weight 0.1), is not here: under a pixel prior it is the first one. The authors'
code weighs the first by 0.05, which counts beside other losses (`Guide.weight`), and adds ones of a NeRF's depth."""

SDS_PERP_NEG = replace(SDS, trust=PerpNeg(101.0))
"""SDS away from the negative prompt, but never against the prompt (Perp-Neg, arXiv:2304.04968)."""

SDS_PERP_NEG_VIEWS = replace(SDS, trust=PerpNegViews(101.0))
"""SDS between the views next to the camera, away from the front and the side (Perp-Neg, arXiv:2304.04968)."""

SDS_DEBIASED = replace(SDS, post=(Clamp(Linear(2.0, 8.0)),))
"""SDS whose gradient may grow only as the run does: score debiasing (D-SDS, arXiv:2303.15413).

Published for latent priors; for pixel priors the limit goes from 0.5 to 2. Its prompt debiasing is `Stage.debias`."""

SJC = replace(SDS, levels=Uniform(0.01, 0.97), weight=One())
"""Score Jacobian Chaining (arXiv:2212.00774): SDS with weight 1, met from the side of the score."""

CSD = replace(SDS, trust=Plain("prompt"), subtract=Plain("null"))
"""Classifier Score Distillation (arXiv:2310.19415): the guidance term alone, so a scale would only be a step size."""

CSD_NEGATIVE = replace(
    SDS,
    levels=Uniform(0.02, Switch(0.98, 0.5, 0.5)),
    trust=Combination(prompt=1.0, negative=Linear(0.0, -1.0, until=0.5), null=Linear(-1.0, 0.0, until=0.5)),
    subtract=Nothing(),
    weight=One(),
    post=(NormalizeBatch(),),
)
"""CSD that moves from the null to the negative prompt in the first half, with the gradient's norm taken out.

The authors' code also lets the negative prompt act across the prompt alone (Perp-Neg), which is left out here."""

NFSD = replace(SDS, trust=NoiseFree(7.5), subtract=Nothing())
"""Noise-Free Score Distillation (arXiv:2310.17590). It wants a negative prompt; with none it is CSD above k = 0.57."""

NFSD_NEGATIVE = "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"
"""What NFSD's authors gave as the negative prompt, to stand for the noise part at high levels (a negative prompt)."""

ANPG = replace(NFSD, post=(Halves(), Clamp(Linear(1.5, 2.0, until=0.28))))
"""Annealed Negative Prompt Guidance (HumanGaussian, arXiv:2311.17061): NFSD of colours and depth together."""

STRUCTURE_SDS = replace(SDS, trust=Guided(8.5, rescale=0.75), post=(Halves(),))
"""Structure-aware SDS (HumanGaussian, arXiv:2311.17061): of colours and depth together.

Its 7.5 is 8.5 here. The statistics that bring depth and colours to one scale, and its pictures of poses, belong to the
prior."""

STABLE_SD = replace(SDS, trust=Stable(), subtract=Nothing())
"""Stable Score Distillation (arXiv:2312.09305), from others' code: its threshold is not confirmed."""

ASD = Rule(
    Above(Uniform(Linear(0.5, 0.02), Linear(0.98, 0.5))),
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
"""Classifier Score Matching (TV-3DG, arXiv:2410.21299): CSD on an inverted sample. Derived from the abstract.

Its scale of 7.5 multiplies the whole gradient, which an Adam optimiser does not see; it is left out (`Guide.weight`).

The paper's VPCSM, which also shows the prior a picture, is not here: no prior here takes one."""

SDI = Rule(
    At(Linear(0.98, 0.25)),
    Inverted(stride=0.1, steps=None, scale=-6.5, start=False, eta=0.3, beyond=0.1),
    trust=Guided(8.5),
    subtract=Drawn(),
    weight=SigmaOverAlpha(),
)
"""Score Distillation via Inversion (arXiv:2405.15891): SDS with the noise that DDIM would have used.

Its 7.5 and -7.5 are 8.5 and -6.5 here, without the Perp-Neg between views that its authors' code turns on."""

CDS = Rule(
    levels.StepAbove(At(Sqrt(0.7, 0.1))),
    noise.EulerStep(Linear(101.0, 51.0)),
    trust=Guided(Linear(101.0, 51.0)),
    subtract=Guided(Linear(101.0, 51.0), level="lower"),
    weight=One(),
    post=(Clamp(Linear(2.0, 8.0)),),
)
"""Consistency Distillation Sampling (Consistent3D, arXiv:2401.09050), with the sign of its code, which contracts."""

CFD = Rule(
    At(Polyline(((0.0, 0.98), (0.1, 0.692), (0.5, 0.404), (1.0, 0.212)))),
    Attached(),
    trust=Guided(71.0),
    subtract=Drawn(),
    weight=SigmaOverAlpha(),
)
"""Consistent Flow Distillation (arXiv:2501.05445): SDS with noise that sticks to the object, at levels that only fall.

The levels are 0.98 - 0.96 p, with p through (0, 0), (0.1, 0.3), (0.5, 0.6), (1, 0.8); 0.98 and 0.02 are not confirmed.
Its loss on decoded pictures, of weight 0.01, is left out."""

LMC = replace(SDS, trust=Guided(9.0), subtract=Corrected(9.0), weight=SigmaOverAlpha())
"""SDS with a Learned Manifold Corrective (arXiv:2401.05293), derived: what denoising blurs anyway is left alone."""

SEMANTIC_SDS = replace(SDS, levels=Uniform(0.02, Switch(0.98, 0.5, 0.2)), trust=Regions(101.0), subtract=Nothing())
"""SemanticSDS (arXiv:2410.09009): each region of the world has a prompt of its own; by default one of the whole.

Its schedule of one object, pairs and the whole is left out; its regions are boxes here, not learned."""

MV_SDS = Rule(
    Uniform(Linear(0.98, 0.02, until=0.8), Linear(0.98, 0.5, until=0.8)),
    Fresh(),
    trust=Jointly(50.0, against="negative", rescale=0.5),
    subtract=Drawn(),
    weight=SigmaOverAlpha(),
)
"""Multi-view SDS (MVDream, arXiv:2308.16512): all views of an object are denoised together.

Under `priors.tiled.Tiled` the views are tiles of one picture: BoostDream's (arXiv:2401.16764), not confirmed."""

CATEGORY_SDS = replace(SDS, trust=LaidOut(7.5, against="null"), subtract=Category())
"""Category-Score Distillation Sampling (Sparse3D, arXiv:2308.14078), derived: a controlled score less its kind's.

The controller is the prior's (`Prior.control`); its guidance scale is not confirmed."""

DIVERSE_SD = Rule(
    Above(At(Sqrt(0.98, 0.32)), start=0.02),
    Simulated(8.5),
    trust=Guided(8.5),
    subtract=Plain("prompt", level="upper"),
    weight=SigmaSquared(),
)
"""Diverse Score Distillation (arXiv:2412.06780): the noise of the sampling path that the seed begins.

Its 7.5 is 8.5 here, without the Perp-Neg between views that its authors' code turns on."""

VSD = Rule(Uniform(0.02, Switch(0.98, 0.5, 0.2)), Fresh(), trust=Guided(7.5), subtract=Student(), weight=SigmaSquared())
"""Variational Score Distillation (ProlificDreamer, arXiv:2305.16213): a student knows the scene's own pictures."""

ESD = replace(VSD, subtract=Student(scale=0.5))
"""Entropic Score Distillation (Taming Mode Collapse, arXiv:2401.00909): VSD whose student half forgets the camera."""

LG_VSD = replace(VSD, levels=Uniform(), trust=LaidOut(7.5), subtract=Student(rate=1e-3, condition="layout_bare"))
"""Layout-Guided VSD (Urban Architect, arXiv:2404.06780): teacher and student both follow a layout.

Its conditions are "layout", "layout_null" and "layout_bare", made by `Prior.control` from a render of the layout; no
prior that ships takes one."""

VDM = Rule(Uniform(0.02, Switch(0.98, 0.5, 0.2)), Fresh(), trust=Guided(7.5), subtract=Mapped(), weight=SigmaSquared())
"""Variational Distribution Mapping (DreamMapping, arXiv:2409.05099), derived: VSD with a student that is no UNet."""

F_DIV = replace(VSD, trust=Guided(1.75), post=(Divergence("jensen_shannon"),))
"""f-distill (arXiv:2502.15681): VSD weighed, sample by sample, as another divergence than VSD's would."""

BOOTSTRAPPED_SD = Rule(
    Uniform(0.05, Linear(0.5, 0.2)), Fresh(), trust=Personal(2.0), subtract=Companion(), weight=SigmaSquared()
)
"""Bootstrapped Score Distillation (DreamCraft3D, arXiv:2310.16818): VSD whose teacher learns the object too."""

RSD = Rule(Uniform(), Fresh(), trust=Guided(7.5), subtract=Repelled(Drawn(), 40.0), weight=One())
"""Repulsive Score Distillation (arXiv:2406.16683): SDS for several particles, which are pushed apart."""

BALANCED_SD = Rule(_INTERVAL.base, Fresh(), trust=Balanced(15.0), subtract=Nothing(), weight=Alpha())
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
    Below(Uniform(), gap=0.001),
    Fresh(),
    trust=Latent(100.0, identity=0.03),
    subtract=Latent(100.0, "source", image="source", identity=0.03),
    weight=One(),
)
"""Posterior Distillation Sampling (arXiv:2311.13831): DDS weighted by the posterior, with a pull to the source."""

LUSD = Rule(
    localized.Retries(Uniform(0.05, 0.948)),
    localized.Gated(),
    trust=localized.Localized(Sigmoid(0.15, 0.01), mask=Linear(0.0, 1.0)),
    subtract=Nothing(),
    weight=One(),
)
"""Localized Update Score Distillation (arXiv:2503.11054): an edit of one size, where the prompts' words differ."""
