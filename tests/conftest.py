"""What the tests share: devices, and sizes that no mistake can hide behind."""

import signal
import time
from functools import cache

import pytest
import torch

from minitransformer import DecoderOnly, EncoderDecoder, EncoderOnly
from minitransformer.checks.engine import diagnosis
from minitransformer.checks.engine.bugs import Bug, bugs
from minitransformer.checks.engine.running import run_check, seed

# Pairwise different, so that no axis can be taken for another; lengths neither sorted nor
# symmetric, so that a transposed mask is another mask; one row is only padding.
BATCH, HEADS, QUERIES, KEYS, WIDTH = 4, 2, 5, 7, 8
LENGTHS = (2, 7, 0, 3)

# What a model can be built from: the styles, and grouped queries.
PARTS = {
    "vanilla": {},
    "bert": {},
    "gpt2": {},
    "llama": {},
    "marian": {},
    "grouped": {"style": "llama", "num_kv_heads": 2},
}
# Each kind of model with norms behind its layers and before them, each style in one kind.
COVERING = {
    EncoderOnly: ("bert", "llama"),
    DecoderOnly: ("vanilla", "gpt2", "grouped"),
    EncoderDecoder: ("marian", "grouped"),
}


def kinds_by_parts(*kinds: type) -> list:
    """Every combination as a parameter, (kind, parts); those beyond COVERING are slow."""
    return [
        pytest.param(
            (kind, parts),
            id=f"{kind.__name__}-{parts}",
            marks=[] if parts in COVERING[kind] else pytest.mark.slow,
        )
        for kind in kinds
        for parts in PARTS
    ]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """A file of 60 words and their mirror images, to train on."""
    path = tmp_path_factory.mktemp("data") / "pairs.tsv"
    words = [f"w{i}x{'ab' * (i % 7)}" for i in range(60)]
    path.write_text("".join(f"{word}\t{word[::-1]}\n" for word in words), encoding="utf-8")
    return str(path)


@cache
def known_bugs() -> dict:
    """(name, body) -> its subject, of every bug in the museum, built once."""
    return {(bug.name, i): bug.subject(i) for bug in bugs() for i in range(1 + len(bug.also))}


@cache
def outcome(check, subject):
    """What `run_check` finds in a subject that stays as it is, once."""
    return run_check(check, subject)


@pytest.fixture(scope="module")
def bugs_asked_once():
    """`diagnose` asks each known bug once for all tests, not once for each report."""
    with pytest.MonkeyPatch.context() as patch:
        subjects = known_bugs()
        patch.setattr(Bug, "subject", lambda bug, body=0: subjects[bug.name, body])
        patch.setattr(diagnosis, "run_check", lambda check, subject, *_: outcome(check, subject))
        yield


@pytest.hookimpl(trylast=True)  # of those that are asked for
def pytest_collection_modifyitems(config, items):
    """Where there is no GPU, of the variants of a test that need one the first stands for all."""
    if torch.cuda.is_available():
        return
    kept, others, known = [], [], set()
    for item in items:
        on_gpu = hasattr(item, "callspec") and item.callspec.params.get("device") == "cuda"
        test = item.nodeid.partition("[")[0]
        (others if on_gpu and test in known else kept).append(item)
        known |= {test} if on_gpu else set()
    config.hook.pytest_deselected(items=others)
    items[:] = kept


@pytest.fixture(autouse=True)
def nobodys_progress(monkeypatch):
    """What tests check is no progress of whoever runs them."""
    monkeypatch.setenv("MINITRANSFORMER_PROGRESS", "")


ONE_BY_ONE = ("test_grading.py", "test_sandbox.py", "test_solutions.py")  # they share nothing


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `-n`, one process runs the tests of a file: they share what they make and compute.

    Tests by the thousand that are handed out one by one would also keep the process busy that does.
    """
    if config.getvalue("dist") != "load":  # another was asked for
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if file.endswith(ONE_BY_ONE) else file

    config.option.loadscopereorder = False  # it begins with files of many tests, not of long ones
    return ByFile(config, log)


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(
                not torch.cuda.is_available(), reason="needs a CUDA GPU; this machine has none"
            ),
        ),
    ]
)
def device(request) -> torch.device:
    """Every test that computes runs on the CPU and, where there is one, on the GPU."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def deterministic():
    """One thread, one seed, and float32 that is not rounded to TF32, as some images have it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def ctrl_c():
    """A shell gives its background jobs no SIGINT; the tests, and what they start, have it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_until(condition, seconds: float = 300.0) -> None:
    """Wait for something that another process does, however little of the machine it gets."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def from_lengths(lengths, length: int, side: str = "right", device="cpu") -> torch.Tensor:
    """The attention_mask, (batch, length) int64, of rows with so many real tokens."""
    index = torch.arange(length, device=device)
    lengths = torch.tensor(lengths, device=device).unsqueeze(1)
    return (index < lengths if side == "right" else index >= length - lengths).long()


def large_init(module: torch.nn.Module) -> torch.nn.Module:
    """Parameters so large that any change of a mask moves every output, biases and gains too."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
        for part in module.modules():
            if isinstance(part, torch.nn.LayerNorm | torch.nn.RMSNorm):
                part.weight += 1.0
    return module
