"""Exact zeros in every kernel: torch's own, by backend, and ours, at lengths where kernels break.

The profiler says which kernel ran, so that none is silently replaced by another.
"""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as torch_attention
from torch.testing import assert_close

from minitransformer import scaled_dot_product_attention
from minitransformer.checks import AttentionSubject, attention_weights_of
from minitransformer.checks.attention.subject import backward_weights_of, expected_weights

# Around the edges of blocks of 64 and 128, and S % 128 == 64: pytorch issue 196678.
LENGTHS = [1, 63, 64, 65, 127, 128, 129, 192]
WIDTH = 64
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
LENGTHS_AND_DTYPES = [  # half precision at the lengths between those, too, in the slow tests
    pytest.param(length, dtype, marks=[] if quick else pytest.mark.slow)
    for length in LENGTHS
    for dtype in TOLERANCE
    for quick in [dtype == torch.float32 or length in (1, 65, 192)]
]
KERNELS = {  # backend -> the operator that the profiler must see, by device
    SDPBackend.MATH: {
        "cpu": "aten::_scaled_dot_product_attention_math",
        "cuda": "aten::_scaled_dot_product_attention_math",
    },
    SDPBackend.FLASH_ATTENTION: {"cpu": "aten::_scaled_dot_product_flash_attention_for_cpu"},
    SDPBackend.EFFICIENT_ATTENTION: {"cuda": "aten::_scaled_dot_product_efficient_attention"},
    SDPBackend.CUDNN_ATTENTION: {"cuda": "aten::_scaled_dot_product_cudnn_attention"},
}


@pytest.fixture(params=[False, True], ids=["exact", "TF32"])
def tf32(request, device):
    """TensorFloat-32 rounds the products of float32 on a GPU; it must never make a zero more."""
    if request.param and device.type != "cuda":
        pytest.skip("TF32 is a matter of GPUs")
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = request.param
    yield request.param
    torch.backends.cuda.matmul.allow_tf32 = before


def test_float32_is_not_rounded_unless_a_test_asks_for_it():
    """TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1, which NVIDIA's images set, would have it so."""
    assert not torch.backends.cuda.matmul.allow_tf32


def inputs(length, dtype, device):
    generator = torch.Generator().manual_seed(length)
    return [
        torch.randn(2, 2, length, WIDTH, generator=generator).to(device, dtype) for _ in range(3)
    ]


def masks(length, device):
    """(2,1,T,T): right padding with a hole, left padding with causality, which makes dead rows."""
    index = torch.arange(length, device=device)
    real = torch.stack([(index < (length + 1) // 2) & (index != 2), index >= length // 3])
    mask = real[:, None, None, :].expand(2, 1, length, length).clone()
    mask[1] &= index <= index.unsqueeze(1)
    return mask


def kernels_of(function):
    """The operators of attention that ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return {event.key for event in profile.key_averages() if "scaled_dot_product" in event.key}


@pytest.mark.parametrize(("length", "dtype"), LENGTHS_AND_DTYPES, ids=str)
def test_ours_at_the_edges_of_blocks(device, length, dtype, tf32):
    query, key, value = inputs(length, dtype, device)
    mask = masks(length, device)
    subject = AttentionSubject(scaled_dot_product_attention)
    weights = attention_weights_of(subject, query, key, value, mask)
    backward = backward_weights_of(subject, query, key, value, mask)
    assert (weights.masked_fill(mask, 0.0) == 0.0).all()
    assert (backward.masked_fill(mask, 0.0) == 0.0).all()
    tolerance = max(TOLERANCE[dtype], 1e-2 if tf32 else 0.0)
    wanted = expected_weights(query, key, mask)
    assert_close(weights.double(), wanted, atol=tolerance, rtol=0)
    assert_close(backward, weights.double(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("backend", KERNELS, ids=lambda backend: backend.name)
@pytest.mark.parametrize(("length", "dtype"), LENGTHS_AND_DTYPES, ids=str)
def test_the_kernels_of_torch(device, backend, dtype, length, tf32):
    """Forward and backward at queries that see a key; what the others get is the table's matter."""
    if device.type not in KERNELS[backend]:
        pytest.skip(f"torch has no {backend.name} for masks on {device.type}")
    query, key, value = inputs(length, dtype, device)
    mask = masks(length, device)
    mask |= ~mask.any(dim=-1, keepdim=True)

    def attention(query, key, value, mask):
        with sdpa_kernel(backend):
            return torch_attention(query, key, value, mask)

    subject = AttentionSubject(attention)
    try:
        ran = kernels_of(lambda: subject(query, key, value, mask))
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
        pytest.skip(f"{backend.name} has no kernel for {dtype} at length {length}")
    assert KERNELS[backend][device.type] in ran
    weights = attention_weights_of(subject, query, key, value, mask)
    assert (weights.masked_fill(mask, 0.0) == 0.0).all()
    tolerance = max(TOLERANCE[dtype], 1e-2 if tf32 else 0.0)
    assert_close(weights.double(), expected_weights(query, key, mask), atol=tolerance, rtol=0)
    backward = backward_weights_of(subject, query, key, value, mask)
    assert (backward.masked_fill(mask, 0.0) == 0.0).all()
    assert_close(backward, weights.double(), atol=tolerance, rtol=0)


def test_another_width_of_value_would_be_another_kernel():
    """Why weights are read in blocks as wide as the values are."""
    query, key, value = inputs(20, torch.float32, "cpu")
    eye = torch.eye(20).expand(2, 2, 20, 20)
    flash = KERNELS[SDPBackend.FLASH_ATTENTION]["cpu"]
    assert flash in kernels_of(lambda: torch_attention(query, key, value))
    assert flash not in kernels_of(lambda: torch_attention(query, key, eye))
