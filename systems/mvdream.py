"""MVDream, on the toybox: multi-view SDS in the paper's form, four views of an object together (arXiv:2308.16512).

The prior that ships was also trained on four views of an object at once, evenly round it, each with the words of its
side. So its network says of every view what fits the other three. The rule is the paper's, with its guidance away from
the negative prompt, its rescaled guidance and its L2 form; the range of levels, the scale, the scene and the losses are
those of the default system, which were chosen for this prior.
"""

from dataclasses import replace

from dreamkit.guidance.rules import MV_SDS
from dreamkit.guidance.together import Jointly
from dreamkit.recipe import Stage, load

rule = replace(MV_SDS, trust=Jointly(4.0, against="negative", rescale=0.5))


def under_mv_sds(stage: Stage) -> Stage:
    (guide,) = stage.guides
    return replace(stage, guides=(replace(guide, rule=replace(rule, levels=guide.rule.levels)),))


default = load("toybox")
recipe = replace(
    default,
    description="the default's scene under multi-view SDS in the form of MVDream",
    stages=tuple(under_mv_sds(stage) for stage in default.stages),
)
