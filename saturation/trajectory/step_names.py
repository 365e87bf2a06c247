"""Which step a checkpoint is of, by the name of its folder, file or revision.

A step stands behind a word for it, whatever follows (`stage1-step150-tokens1B`,
`global_step100_hf`, `iter_100_fp16`), or at the end (`run_000100`, `v1.1-100`), or at the beginning
of a suffix (`100-unsharded`). Other digits are none: `1e3`, `0.1`, `100k`, a date, a hash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from saturation.checkpoints import listing
from saturation.storage.listing import matches

# Of two words in a name the first of these counts.
_WORDS = ("step", "iter(?:ation)?", "ckpt|checkpoint")
# Neither a part of a number that goes on, nor one of several numbers in a row.
_NUMBER = r"(?P<step>\d{1,18})(?![\dA-Za-z]|[.,]\d|[-_ ]\d)"
_BEHIND = tuple(
    re.compile(
        rf"(?i)(?P<before>(?:.*[^a-z])?(?:global[-_]?)?(?:{word})s?[-_=. ]?){_NUMBER}(?P<after>.*)"
    )
    for word in _WORDS
)
_WORD_AND_DIGIT = re.compile(rf"(?i)(?<![a-z])(?:global[-_]?)?(?:{'|'.join(_WORDS)})s?[-_=. ]?\d")
_AT_END = re.compile(r"(?P<before>(?:.*[^0-9])?)(?P<step>\d{1,18})(?P<after>)")
_IN_FRONT = re.compile(r"(?P<before>)(?P<step>\d{1,18})(?P<after>[-_ ][^0-9]+)")
_NO_STEP = re.compile(
    r"(?i)[0-9a-f]{40}|[0-9a-f]{64}"  # a commit's hash, or a file's
    r"|.*\d{4}-\d{2}-\d{2}"  # a date
    r"|(.*[^a-z])?\d+e[-+]?\d+|.*\d[.,]\d+|.*v\d+_\d+"  # 1e3, 0.1, v1_1
)


class StepName(NamedTuple):
    """What a name says.

    Attributes:
      before, after: the rest of the name, the same in all names of a series. Epochs, and numbers
        behind the step (`tokens4B`), go with the step and are "#".
      step: the step, or None where the name gives none.
    """

    before: str
    after: str
    step: int | None

    @property
    def family(self) -> str:
        """How the series is written in an error."""
        return f"{self.before}*{self.after}"


def step_name(name: str) -> StepName:
    """Return the step and the series of a name.

    >>> step_name("stage1-step150-tokens1B")
    StepName(before='stage1-step', after='-tokens#B', step=150)
    >>> step_name("1e3").step is None
    True
    """
    stem, extension = _without_extension(name)
    found = None
    inside = listing().interior
    if not (_NO_STEP.fullmatch(stem) or matches(inside, stem) or matches(inside, name)):
        # The number of a file may also be a shard's: a word, or nothing else, must say more.
        rules = (*_BEHIND, *(() if extension and not stem.isdecimal() else (_AT_END, _IN_FRONT)))
        found = next((match for rule in rules if (match := rule.fullmatch(stem))), None)
    # Digits behind a word that are none of the forms above are not to be guessed at.
    behind = found is not None and found.re in _BEHIND
    if found is None or _several(stem) or (not behind and _WORD_AND_DIGIT.search(stem)):
        return StepName(name, "", None)
    before = re.sub(r"(?i)(epoch[-_=. ]?)\d+", r"\1#", found["before"])
    return StepName(before, re.sub(r"\d+", "#", found["after"]) + extension, int(found["step"]))


def thousands(name: str) -> StepName:
    """Return the step of a repository's name, whose steps may be thousands: `seed_0-step_20k`.

    >>> thousands("multiberts-seed_0-step_20k").step
    20000
    """
    found = re.fullmatch(r"(?i)(?P<before>.*step[-_])(?P<step>\d{1,15})k", name)
    if found is None:
        return step_name(name)
    return StepName(found["before"], "k", 1000 * int(found["step"]))


def says_step(name: str) -> bool:
    """Whether a number is a step even where no other name is like it: `gpt2` says none."""
    found = step_name(name)
    alone = not found.before or not found.before[-1].isalpha()
    return found.step is not None and (alone or any(rule.match(name) for rule in _BEHIND))


def manifest_of(names: Iterable[str], steps: Mapping[str, int | None]) -> str:
    """Return what an error says of how to write down which step each name is of."""
    listed = sorted(names)
    lines = [
        f"  - {{step: {'STEP' if steps.get(name) is None else steps[name]}, url: {name!r}}}"
        for name in listed[:3]
    ]
    more = ["  ..."] if len(listed) > 3 else []
    return "\n".join(
        [
            "Say which is which in a file steps.yaml beside them, and open that:",
            "checkpoints:",
            *lines,
            *more,
        ]
    )


def _without_extension(name: str) -> tuple[str, str]:
    for extension in listing().extensions:
        if name.endswith(extension):
            return name.removesuffix(extension), extension
    return name, ""


def _several(stem: str) -> bool:
    """Whether a name says two steps."""
    return len(re.findall(r"(?i)(?<![a-z])(?:global[-_]?)?steps?[-_=. ]?\d+", stem)) > 1
