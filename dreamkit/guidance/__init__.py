"""Guidance rules: how a frozen prior says what should change in a picture."""

from dreamkit.guidance.rule import Ask, Guidance, Rule, check, gradient
from dreamkit.guidance.rules import CSD, CSD_NEGATIVE, NFSD, NFSD_NEGATIVE, SDS, SDS_ANNEALED, SJC

__all__ = [
    "Rule",
    "Ask",
    "Guidance",
    "gradient",
    "check",
    "SDS",
    "SDS_ANNEALED",
    "SJC",
    "CSD",
    "CSD_NEGATIVE",
    "NFSD",
    "NFSD_NEGATIVE",
]
