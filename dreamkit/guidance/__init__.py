"""Guidance rules: how a frozen prior says what should change in a picture. The published ones are in `rules`."""

from dreamkit.guidance.rule import Ask, Guidance, Rule, check, gradient

__all__ = ["Ask", "Guidance", "Rule", "check", "gradient"]
