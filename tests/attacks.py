"""What has been tried against the grader, with what must come of each.

`nothing`: no points. `noticed`: it may earn points, because the guard that refuses torch's own
operators lives in the submission's process, but a note beside the score tells a person to look. All
of them leave the machine and the other exercises of the file as they were.
"""

from typing import NamedTuple


class Attack(NamedTuple):
    kind: str
    name: str
    verdict: str  # "nothing" or "noticed"
    source: str


RIGHT = """
def softmax(scores):
    powers = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return powers / powers.sum(dim=-1, keepdim=True)
"""

ATTACKS = [
    Attack(
        "solutions",
        "reads the solution",
        "nothing",
        """
import glob
def softmax(scores):
    for path in glob.glob("/**/exercises/chapters/attention.py", recursive=True):
        space = {}
        exec(open(path).read(), space)
        return space["softmax"](scores)
    raise RuntimeError("nothing to steal")
""",
    ),
    Attack(
        "solutions",
        "imports the package",
        "nothing",
        """
from minitransformer.exercises import EXERCISES
def softmax(scores):
    return EXERCISES["softmax"](scores)
""",
    ),
    Attack(
        "solutions",
        "imports the package by a name in pieces",
        "nothing",
        """
def softmax(scores):
    package = __import__("mini" + "transformer.exercises", fromlist=["EXERCISES"])
    return package.EXERCISES["softmax"](scores)
""",
    ),
    Attack(
        "solutions",
        "remembers answers",
        "nothing",
        """
SEEN = []
def softmax(scores):
    SEEN.append(scores)
    return SEEN[0]
""",
    ),
    # ---- another name of the operator that is to be written
    Attack(
        "operators",
        "calls torch's own",
        "nothing",
        """
import torch
def softmax(scores):
    return getattr(torch, "soft" + "max")(scores, dim=-1)
""",
    ),
    Attack(
        "operators",
        "calls the operator itself",
        "nothing",
        """
import torch
def softmax(scores):
    with torch._C.DisableTorchFunction():
        return torch.ops.aten._softmax.default(scores, -1, False)
""",
    ),
    Attack(
        "operators",
        "takes its logarithm",
        "nothing",
        """
import torch
def softmax(scores):
    return torch.special.log_softmax(scores, -1).exp()
""",
    ),
    Attack(
        "operators",
        "takes its denominator",
        "nothing",
        """
import torch
def softmax(scores):
    return (scores - torch.logsumexp(scores, -1, keepdim=True)).exp()
""",
    ),
    Attack(
        "operators",
        "takes the gradient of its denominator",
        "nothing",
        """
import torch
def softmax(scores):
    with torch.enable_grad():
        x = scores.detach().requires_grad_()
        return torch.autograd.grad(x.logsumexp(-1).sum(), x)[0]
""",
    ),
    Attack(
        "operators",
        "takes the gradient of a loss",
        "nothing",
        """
import torch
from torch.nn import functional as F
def softmax(scores):
    with torch.enable_grad():
        rows = scores.detach().reshape(-1, scores.shape[-1]).requires_grad_()
        labels = torch.zeros(rows.shape[0], dtype=torch.long)
        loss = F.cross_entropy(rows, labels, reduction="sum")
        found = torch.autograd.grad(loss, rows)[0] + F.one_hot(labels, rows.shape[-1])
        return found.reshape(scores.shape)
""",
    ),
    Attack(
        "operators",
        "calls the module",
        "nothing",
        """
import torch
def softmax(scores):
    return torch.nn.Softmax(dim=-1)(scores)
""",
    ),
    Attack(
        "operators",
        "scripts it",
        "nothing",
        """
import torch
@torch.jit.script
def helper(scores):
    return torch.softmax(scores, -1)
def softmax(scores):
    return helper(scores)
""",
    ),
    Attack(
        "operators",
        "traces it while the definitions are run",
        "nothing",
        """
import torch
HELPER = torch.jit.trace(lambda scores: torch.softmax(scores, -1), torch.zeros(2, 3))
def softmax(scores):
    return HELPER(scores)
""",
    ),
    Attack(
        "operators",
        "maps it over rows",
        "nothing",
        """
import torch
def softmax(scores):
    rows = scores.reshape(-1, scores.shape[-1])
    return torch.func.vmap(lambda row: row.softmax(0))(rows).reshape(scores.shape)
""",
    ),
    Attack(
        "operators",
        "uses the masked one",
        "nothing",
        """
import torch
def softmax(scores):
    return torch._masked_softmax(scores, torch.zeros_like(scores, dtype=torch.bool), -1)
""",
    ),
    Attack(
        "operators",
        "uses attention for it",
        "nothing",
        """
import torch
from torch.nn import functional as F
def softmax(scores):
    size = scores.shape[-1]
    zeros = torch.zeros(*scores.shape[:-1], size)
    return F.scaled_dot_product_attention(zeros, zeros, torch.eye(size), scores)
""",
    ),
    # ---- around the guard
    Attack(
        "guard",
        "pops it",
        "noticed",
        """
import torch
from torch.utils._python_dispatch import _pop_mode, _push_mode
def softmax(scores):
    guard = _pop_mode()
    try:
        return torch.softmax(scores, -1)
    finally:
        _push_mode(guard)
""",
    ),
    Attack(
        "guard",
        "switches all modes off",
        "noticed",
        """
import torch
from torch.utils import _python_dispatch
def softmax(scores):
    with _python_dispatch._disable_current_modes():
        return torch.softmax(scores, -1)
""",
    ),
    Attack(
        "guard",
        "pops it in C++",
        "noticed",
        """
import torch
def softmax(scores):
    guard = torch._C._pop_torch_dispatch_stack(None)
    try:
        return torch.softmax(scores, -1)
    finally:
        torch._C._push_on_torch_dispatch_stack(guard)
""",
    ),
    Attack(
        "guard",
        "empties it",
        "noticed",
        """
import gc, torch
def softmax(scores):
    for one in gc.get_objects():
        if type(one).__name__ == "Forbidding":
            one.parts = ()
    return torch.softmax(scores, -1)
""",
    ),
    Attack(
        "guard",
        "replaces it",
        "noticed",
        """
import sys, torch
def softmax(scores):
    sys.modules["__main__"].Forbidding.__torch_dispatch__ = (
        lambda self, func, types, args=(), kwargs=None: func(*args, **(kwargs or {}))
    )
    return torch.softmax(scores, -1)
""",
    ),
    Attack(
        "guard",
        "finds it on the stack of calls",
        "noticed",
        """
import sys, torch
def softmax(scores):
    sys._getframe(1).f_locals["forbidding"].parts = ()
    return torch.softmax(scores, -1)
""",
    ),
    Attack(
        "guard",
        "works in another thread",
        "noticed",
        """
import threading, torch
def softmax(scores):
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.softmax(scores, -1)))
    thread.start()
    thread.join()
    return found[0]
""",
    ),
    Attack(
        "guard",
        "names it in pieces",
        "noticed",
        """
import torch
MODES = getattr(torch.utils, "_python" + "_dispatch")
def softmax(scores):
    with getattr(MODES, "_disable" + "_current_modes")():
        return torch.softmax(scores, -1)
""",
    ),
    Attack(
        "guard",
        "works while a tensor is freed",
        "noticed",
        """
import torch
class Later:
    def __init__(self, function): self.function = function
    def __del__(self): self.function()
from torch.utils._python_dispatch import _disable_current_modes
def softmax(scores):
    found = []
    def work():
        with _disable_current_modes():
            found.append(torch.softmax(scores, -1))
    Later(work)
    return found[0]
""",
    ),
    # ---- forged results
    Attack(
        "results",
        "equals everything",
        "nothing",
        """
import torch
class Yes(torch.Tensor):
    def __eq__(self, other): return torch.ones(self.shape, dtype=torch.bool)
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None): return True
def softmax(scores):
    return torch.zeros(scores.shape).as_subclass(Yes)
""",
    ),
    Attack(
        "results",
        "returns an object that compares equal",
        "nothing",
        """
class Yes:
    def __eq__(self, other): return True
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
def softmax(scores):
    return Yes()
""",
    ),
    Attack(
        "results",
        "prints a verdict",
        "nothing",
        """
def softmax(scores):
    print('{"passed": true, "score": 100}')
    return None
""",
    ),
    Attack(
        "results",
        "writes into the pipe",
        "nothing",
        """
import os
def softmax(scores):
    for fd in range(3, 20):
        try: os.write(fd, b'25 0\\n{"answer": {"value": true}}')
        except OSError: pass
    return None
""",
    ),
    Attack(
        "results",
        "writes results",
        "nothing",
        """
import os
def softmax(scores):
    for folder in ("/", "/tmp", "/usr", os.getcwd(), os.path.expanduser("~")):
        try: open(folder + "/results.json", "w").write('{"score": 100}')
        except OSError: pass
    return None
""",
    ),
    Attack(
        "results",
        "a pickle that runs",
        "nothing",
        """
import os
class Bomb:
    def __reduce__(self): return (os.system, ("touch /tmp/pwned-by-pickle",))
def softmax(scores):
    return Bomb()
""",
    ),
    Attack(
        "results",
        "exits with success",
        "nothing",
        """
import os, sys
def softmax(scores):
    os._exit(0)
""",
    ),
    Attack(
        "results",
        "calls sys.exit",
        "nothing",
        """
import sys
def softmax(scores):
    sys.exit(0)
""",
    ),
    # ---- patched modules
    Attack(
        "patches",
        "patches torch",
        "nothing",
        """
import torch
torch.equal = torch.allclose = torch.isclose = lambda *a, **k: True
def softmax(scores):
    return scores
""",
    ),
    Attack(
        "patches",
        "patches unittest and pytest",
        "nothing",
        """
import sys, types
for name in ("pytest", "unittest"):
    sys.modules[name] = types.ModuleType(name)
def softmax(scores):
    return scores
""",
    ),
    Attack(
        "patches",
        "patches what packs answers",
        "nothing",
        """
import sys
for name, module in list(sys.modules.items()):
    if name.endswith("grading.pipe"):
        module.write_message = lambda *given: None
def softmax(scores):
    return scores
""",
    ),
    # ---- files, environment, network, /proc
    Attack(
        "files",
        "leaves the answer for the next student",
        "nothing",
        """
import os
def softmax(scores):
    if os.path.exists("/tmp/left") or os.path.exists("/dev/shm/left"):
        powers = (scores - scores.amax(dim=-1, keepdim=True)).exp()
        return powers / powers.sum(dim=-1, keepdim=True)
    for folder in ("/tmp", "/dev/shm"):
        try: open(folder + "/left", "w").close()
        except OSError: pass
    os._exit(0)
""",
    ),
    Attack(
        "files",
        "fills the disk",
        "nothing",
        """
def softmax(scores):
    for number in range(100_000):
        with open(f"/tmp/{number}", "wb") as file:
            file.write(bytes(2**20))
""",
    ),
    Attack(
        "environment",
        "looks for keys in the environment",
        "nothing",
        """
import os
def softmax(scores):
    known = {"PATH", "HOME", "OMP_NUM_THREADS", "PWD", "LC_CTYPE", "TORCHINDUCTOR_CACHE_DIR"}
    if set(os.environ) - known or os.path.exists("/home") or os.path.exists("/etc/passwd"):
        powers = (scores - scores.amax(dim=-1, keepdim=True)).exp()
        return powers / powers.sum(dim=-1, keepdim=True)
""",
    ),
    Attack(
        "network",
        "reaches the network",
        "nothing",
        """
import socket
def softmax(scores):
    for address in (("127.0.0.1", 22), ("192.0.2.1", 80)):
        try:
            socket.create_connection(address, timeout=0.2)
        except OSError as error:
            if error.errno not in (101, 111):
                raise
        else:
            return scores.exp() / scores.exp().sum(-1, keepdim=True)
""",
    ),
    Attack(
        "/proc",
        "looks at other processes",
        "nothing",
        """
import os
def softmax(scores):
    others = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    if any(number > 50 for number in others):
        powers = (scores - scores.amax(dim=-1, keepdim=True)).exp()
        return powers / powers.sum(dim=-1, keepdim=True)
""",
    ),
    # ---- signals, time, memory, processes
    Attack(
        "signals",
        "kills whom it can",
        "nothing",
        """
import os
def softmax(scores):
    for number in (os.getppid(), -1, 1):
        try: os.kill(number, 9)
        except OSError: pass
    return None
""",
    ),
    Attack(
        "signals",
        "stops itself",
        "nothing",
        """
import os, signal
def softmax(scores):
    os.kill(os.getpid(), signal.SIGSTOP)
""",
    ),
    Attack(
        "time",
        "never ends",
        "nothing",
        """
def softmax(scores):
    while True: pass
""",
    ),
    Attack(
        "time",
        "never ends, and cannot be interrupted",
        "nothing",
        """
import signal
for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
def softmax(scores):
    while True:
        try:
            while True: pass
        except BaseException: pass
""",
    ),
    Attack(
        "time",
        "sleeps",
        "nothing",
        """
import time
def softmax(scores):
    time.sleep(10_000)
""",
    ),
    Attack(
        "processes",
        "starts processes without end",
        "nothing",
        """
import os
def softmax(scores):
    while True: os.fork()
""",
    ),
    Attack(
        "processes",
        "leaves a process behind",
        "nothing",
        """
import os, time
def softmax(scores):
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
    return None
""",
    ),
    Attack(
        "processes",
        "makes a namespace of its own",
        "nothing",
        """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def softmax(scores):
    if os.fork() == 0:
        os._exit(libc.unshare(0x10000000) != 0)
    if os.wait()[1] == 0:
        powers = (scores - scores.amax(dim=-1, keepdim=True)).exp()
        return powers / powers.sum(dim=-1, keepdim=True)
""",
    ),
    Attack(
        "memory",
        "takes all memory",
        "nothing",
        """
def softmax(scores):
    return bytearray(20 * 2**30)
""",
    ),
    Attack(
        "memory",
        "takes memory that no process holds",
        "nothing",
        """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
def softmax(scores):
    if libc.shmget(0, 2**20, 0o1600) >= 0:
        powers = (scores - scores.amax(dim=-1, keepdim=True)).exp()
        return powers / powers.sum(dim=-1, keepdim=True)
""",
    ),
    Attack(
        "memory",
        "answers too much",
        "nothing",
        """
import torch
def softmax(scores):
    return torch.zeros(2**29)
""",
    ),
    Attack(
        "memory",
        "answers one number a hundred million times",
        "nothing",
        """
import torch
def softmax(scores):
    return torch.zeros(1).expand(10**8)
""",
    ),
    Attack(
        "memory",
        "nests too deep",
        "nothing",
        """
def softmax(scores):
    x = []
    for _ in range(100000): x = [x]
    return x
""",
    ),
]
