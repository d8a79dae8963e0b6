# ==== wrong: the warm-up starts at 0 (step / warmup instead of (step + 1) / warmup)
# says: Step 0 has a rate of 0: the first
import math


def learning_rate(step, peak, warmup, total):
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / (total - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))

# ==== wrong: the progress of the cosine does not leave out the warm-up (step / total)
# says: The fall is counted from step 0, not from
import math


def learning_rate(step, peak, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    return 0.5 * peak * (1 + math.cos(math.pi * step / total))

# ==== wrong: the cosine is not lifted by 1 and halved, the rate becomes negative
# says: cos goes from 1 to -1, so the rate
from math import cos, pi


def learning_rate(step, peak, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * cos(pi * (step - warmup) / (total - warmup))

# ==== wrong: a quarter of a wave (cos from 0 to pi/2) instead of half a cosine
# says: This is the first quarter of a cosine, from
import math


def learning_rate(step, peak, warmup, total):
    if step < warmup:
        lr = peak * (step + 1) / warmup
    else:
        t = (step - warmup) / (total - warmup)
        lr = peak * math.cos(t * math.pi / 2)
    return lr

# ==== wrong: step <= warmup, so the step after the warm-up is above the peak
# says: The warm-up is a step too long, and that
import math


def learning_rate(step, peak, warmup, total):
    if warmup > 0 and step <= warmup:
        return peak * (step + 1) / warmup
    frac = (step - warmup) / (total - warmup)
    return peak * (1 + math.cos(math.pi * frac)) / 2

# ==== wrong: the cosine is divided by total and not by total - warmup, it does not come down to 0
# says: The fall is divided by all steps, the warm-up
import math


def learning_rate(step, peak, warmup, total):
    warm = step < warmup
    return peak * (step + 1) / warmup if warm else peak * (0.5 + 0.5 * math.cos(math.pi * (step - warmup) / total))

# ==== wrong: a straight line down instead of half a cosine
# says: After the warm-up it falls in a straight line,
def learning_rate(step, peak, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (total - step) / (total - warmup)

# ==== wrong: off by one in the cosine, the first step after the warm-up is below the peak and the last is 0
# says: The fall begins a step early: at step ==
import math


def learning_rate(step, peak, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    done = step - warmup + 1
    return peak * 0.5 * (1.0 + math.cos(math.pi * done / (total - warmup)))

# ==== wrong: the cosine ends at the last step (total - 1), 0 is reached one step too early
# says: The fall is over a step early: the last
import math


def learning_rate(step, peak, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    span = max(total - 1 - warmup, 1)
    x = (step - warmup) / span
    return peak * (math.cos(math.pi * x) + 1) / 2

# ==== wrong: 1 - cos, the rate rises from 0 to the peak after the warm-up
# says: After the warm-up it rises, from 0 to the
import math


def learning_rate(step, peak, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    angle = math.pi * (step - warmup) / (total - warmup)
    return peak * (1 - math.cos(angle)) / 2

# ==== wrong: a whole cosine (2 pi), down and up again
# says: The angle is wrong: math.cos takes radians, and half
import math


def learning_rate(step, peak, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    phase = (step - warmup) / (total - warmup)
    return peak * (1 + math.cos(2 * math.pi * phase)) / 2

# ==== wrong: the peak is forgotten in the warm-up
# says: The peak is missing, during the warm-up, after it
import math


def learning_rate(step, peak, warmup, total):
    if step < warmup:
        return (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

# ==== wrong: division by zero when warmup is 0
# says:
import math


def learning_rate(step, peak, warmup, total):
    up = min(1.0, (step + 1) / warmup)
    down = 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / (total - warmup)))
    return peak * up * down

# ==== wrong: integer division, the rate is 0 until the last step of the warm-up
# says: Whole numbers are divided with //, which drops everything
import math


def learning_rate(step, peak, warmup, total):
    if step < warmup:
        return peak * ((step + 1) // warmup)
    ratio = (step - warmup) / (total - warmup)
    return peak * 0.5 * (math.cos(ratio * math.pi) + 1)

# ==== wrong: two: the warm-up starts at 0, and the cosine is not lifted (negative)
# says: Step 0 has a rate of 0: the first
import math


def learning_rate(step, peak, warmup, total):
    if step < warmup:
        return step / warmup * peak
    part = float(step - warmup) / float(max(1, total - warmup))
    return math.cos(math.pi * part) * peak

# ==== wrong: two: the cosine's progress contains the warm-up (step / total), and step <= warmup
# says: The warm-up is a step too long, and that
import math


def learning_rate(step, peak, warmup, total):
    if step <= warmup and warmup != 0:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * step / total)) / 2

# ==== wrong: two: the warm-up goes without the +1, and the way down is a straight line
# says: Step 0 has a rate of 0: the first
def learning_rate(step, peak, warmup, total):
    if step < warmup:
        factor = float(step) / float(max(1, warmup))
    else:
        factor = max(0.0, float(total - step) / float(max(1, total - warmup)))
    return peak * factor

# ==== wrong: degrees and radians confused (180 given to math.cos)
# says: The angle is wrong: math.cos takes radians, and half
import math


def learning_rate(step, peak, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(180 * (step - warmup) / (total - warmup))) / 2

# ==== wrong: it cools down to a tenth of the peak and not to 0
# says: It does not fall towards 0: it comes down
import math


def learning_rate(step, peak, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    low = 0.1 * peak
    c = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
    return low + (peak - low) * c

# ==== wrong: the warm-up is multiplied with a cosine that already falls from step 0
# says: The rise and the fall are multiplied: the cosine
import math


def learning_rate(step, peak, warmup, total):
    scale = (step + 1) / warmup if step < warmup else 1.0
    return peak * scale * 0.5 * (1 + math.cos(math.pi * step / total))

# ==== right: if and the usual formula
import math


def learning_rate(step: int, peak: float, warmup: int, total: int) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / (total - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))

# ==== right: the square of the cosine of half the angle
import math


def learning_rate(step, peak, warmup, total):
    if step < warmup:
        return (step + 1) / warmup * peak
    return peak * math.cos(math.pi / 2 * (step - warmup) / (total - warmup)) ** 2

# ==== right: one minimum, with care for warmup 0
import math


def learning_rate(step, peak, warmup, total):
    up = (step + 1) / max(warmup, 1)
    past = max(step - warmup, 0)
    down = (1 - math.sin(math.pi * (past / (total - warmup) - 0.5))) / 2
    return peak * min(up, 1.0) * down

# ==== right: real part of a complex exponential
import cmath


def learning_rate(step, peak, warmup, total):
    if warmup and step < warmup:
        return peak / warmup * (step + 1)
    turn = cmath.exp(1j * cmath.pi * (step - warmup) / (total - warmup))
    return float(peak * (turn.real + 1) / 2)
