"""MVDream, on the toybox: the default system under multi-view SDS, four views of an object together (arXiv:2308.16512).

The prior that ships was also trained on four views of an object at once, evenly round it, each with the words of its
side. So its network says of every view what fits the other three. The form of the rule is the paper's; its levels,
scale and weight, the scene and the losses are those of the default system, which were chosen for this prior. The second
stage's pictures, denoised in several steps, are denoised together too.
"""

from dataclasses import replace

from dreamkit.guidance.estimate import Guided
from dreamkit.guidance.levels import Uniform
from dreamkit.guidance.together import Jointly
from dreamkit.priors import Diffusers
from dreamkit.recipe import Guide, Stage, load

VIEWS = 4


def together(stage: Stage) -> Stage:
    """The same stage, its views in groups of one object's, which have one level."""
    rule = stage.guides[0].rule
    assert isinstance(rule.levels, Uniform)
    trust = Jointly(rule.trust.scale) if isinstance(rule.trust, Guided) else rule.trust
    rule = replace(rule, levels=replace(rule.levels, per="object"), trust=trust)
    guide = Guide(rule, Diffusers("toybox", views=VIEWS))
    return replace(stage, guides=(guide,), cameras=replace(stage.cameras, group=VIEWS))


default = load("toybox")
recipe = replace(
    default,
    description="the default under multi-view SDS: the prior that ships sees four views of an object together",
    stages=tuple(together(stage) for stage in default.stages),
)
