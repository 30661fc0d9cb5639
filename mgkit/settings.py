"""Settings of generation: sampling, guidance, length; parsed and checked."""

import math
from dataclasses import dataclass
from numbers import Real

from mgkit.brief import brief
from mgkit.schedule import Schedule, parse_schedule

DAY = 86400  # seconds; the longest piece
ABOVE_0 = math.ulp(0.0)  # the smallest positive float
GREEDY = 1e-6  # the most likely token is certain below this temperature
LARGEST_COEF = 1e6  # of guidance; far beyond any use, and far below overflow

SETTINGS_HELP = {  # for the command line and the studio
    "use_sampling": "draw tokens at random; if off, always take the most likely one",
    "top_k": "draw from the k most likely tokens only; 0 for all",
    "top_p": "draw from the smallest set of tokens with this total probability; above 0 it replaces top-k",
    "min_p": "leave out tokens less likely than this share of the most likely one's probability",
    "temperature": "above 1 more surprising, below 1 safer, 0 always the most likely token",
    "duration": "length of the result in seconds, including an audio prompt",
    "cfg_coef": "classifier-free guidance: how strongly to follow the prompt; 1 is no guidance",
    "cfg_coef_beta": "double guidance: how strongly to follow the text beyond the melody",
    "two_step_cfg": "run guidance as two small forward passes per step instead of a large one: less memory",
    "extend_stride": "seconds from the start of one window to the next, in long music; default: 0.6 windows",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to generate: names and defaults of audiocraft's `set_generation_params`; see `SETTINGS_HELP`.

    `cfg_coef` is a number or a schedule over the seconds of the piece, [(0, 1.0), (4, 3.0)]; `min_p` is not
    in audiocraft (arXiv:2407.01082).

    Raises:
        ValueError: a value of the wrong type or out of range.
    """

    use_sampling: bool = True
    top_k: int = 250
    top_p: float = 0.0
    min_p: float = 0.0
    temperature: float = 1.0
    duration: float = 30.0
    cfg_coef: Schedule = 3.0
    cfg_coef_beta: float | None = None
    two_step_cfg: bool = False
    extend_stride: float | None = None

    def __post_init__(self) -> None:
        self._parse("use_sampling", bool, "True or False")
        self._parse("top_k", int, "an integer of at least 0", low=0)
        self._parse("top_p", float, "a number from 0 to 1", low=0, high=1)
        self._parse("min_p", float, "a number from 0 to 1", low=0, high=1)
        self._parse("temperature", float, "a number of at least 0", low=0)
        self._parse("duration", float, "a number of seconds above 0, at most a day", low=ABOVE_0, high=DAY)
        coef = parse_schedule(self.cfg_coef, "cfg_coef", -LARGEST_COEF, LARGEST_COEF)
        object.__setattr__(self, "cfg_coef", coef)
        self._parse("two_step_cfg", bool, "True or False")
        if self.cfg_coef_beta is not None:
            self._parse("cfg_coef_beta", float, "a number from -1e6 to 1e6", -LARGEST_COEF, LARGEST_COEF)
        if self.extend_stride is not None:
            self._parse("extend_stride", float, "a number of seconds above 0, or None", low=ABOVE_0)

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random."""
        return self.use_sampling and self.temperature >= GREEDY

    def _parse(
        self, name: str, kind: type, expected: str, low: float = -math.inf, high: float = math.inf
    ) -> None:
        """Replace a field's value by a plain `kind` (bool, int or float)."""
        value = getattr(self, name)
        number = isinstance(value, Real) and (kind is bool or not isinstance(value, bool))
        try:
            valid = number and low <= value <= high and math.isfinite(value) and kind(value) == value
        except OverflowError:  # an int beyond all floats
            valid = False
        if not valid:
            raise ValueError(f"{name} is {brief(value)}; it must be {expected}")
        object.__setattr__(self, name, kind(value))
