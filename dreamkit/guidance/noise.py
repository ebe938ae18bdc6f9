"""With which noise to look."""

from dataclasses import dataclass

from dreamkit.guidance.rule import Noise, Noised, Probe


@dataclass(frozen=True)
class Fresh(Noise):
    """Independent N(0, 1) noise, new at every step and for every sample; shared by all levels and images of a step."""

    def __call__(self, probe: Probe) -> Noised:
        return Noised(probe.streams.normal("noise", tuple(probe.x.shape), like=probe.x))
