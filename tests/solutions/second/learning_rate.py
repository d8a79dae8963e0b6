# ==== wrong: the warm-up is step / warmup instead of (step + 1) / warmup, it begins at 0
# says: Step 0 has a rate of 0: the first
import math


def learning_rate(step: int, peak: float, warmup: int, total: int) -> float:
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / (total - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))

# ==== wrong: the cosine's progress is step / total, the warm-up is not taken off
# says: The fall is counted from step 0, not from
import math


def learning_rate(step, peak, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * step / total)) / 2

# ==== wrong: a quarter of a period, cos from 0 to pi/2, instead of half a period moved up
# says: This is the first quarter of a cosine, from
from math import cos, pi


def learning_rate(step, peak, warmup, total):
    if step < warmup:
        lr = (step + 1) / warmup * peak
    else:
        t = (step - warmup) / (total - warmup)
        lr = peak * cos(t * pi / 2)
    return lr

# ==== wrong: 0 is reached at the last step, total - 1, instead of at total
# says: The fall is over a step early: the last
import math


def learning_rate(step, peak, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    span = max(total - 1 - warmup, 1)
    x = (step - warmup) / span
    return peak * (0.5 + 0.5 * math.cos(math.pi * x))

# ==== wrong: two mistakes: the warm-up holds at step == warmup too (<=), so it rises above the peak, and it falls in a straight line instead of a cosine
# says: The warm-up is a step too long, and that
def learning_rate(step, peak, warmup, total):
    if step <= warmup:
        return peak * (step + 1) / max(warmup, 1)
    return peak * (total - step) / (total - warmup)

# ==== wrong: two mistakes: not halved, 1 + cos goes from 2 * peak, and the progress is divided by total instead of total - warmup
# says: The fall is divided by all steps, the warm-up
import math


def learning_rate(step, peak, warmup, total):
    warm = peak * (step + 1) / warmup if warmup > 0 else peak
    angle = math.pi * (step - warmup) / total
    decayed = peak * (1 + math.cos(angle))
    return warm if step < warmup else decayed

# ==== right: with if
import math


def learning_rate(step, peak, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / (total - warmup)
    return peak * (1 + math.cos(math.pi * done)) / 2

# ==== right: with the square of a cosine of half the angle
import math


def learning_rate(step, peak, warmup, total):
    left = step - warmup
    if left < 0:
        return peak * (1 + (left + 1) / warmup)
    return peak * math.cos(0.5 * math.pi * left / (total - warmup)) ** 2
