"""Priors: frozen diffusion models, and exact ones to test against."""

from dreamkit.priors.analytic import Bell, Gaussian, Mixture
from dreamkit.priors.folder import STABLE_DIFFUSION
from dreamkit.priors.pretrained import Diffusers
from dreamkit.priors.prior import CAPABILITIES, Condition, Prior, PriorSpec, view_conditions

__all__ = [
    "Prior",
    "PriorSpec",
    "Condition",
    "CAPABILITIES",
    "view_conditions",
    "Diffusers",
    "STABLE_DIFFUSION",
    "Gaussian",
    "Mixture",
    "Bell",
]
