"""Several processes that train one model: on the cores, the GPUs or the machines that torchrun has.

    torchrun --nproc-per-node 2 -m minitransformer train

Each process draws the whole batch of a step and keeps the rows number rank, rank + size, ...: so
together they see what one process would, and each knows the number of labels without asking.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minitransformer.data.files import InputError
from minitransformer.layers import Stack


@dataclass(frozen=True)
class Processes:
    """`size` processes, of which this is number `rank`. Process 0 speaks and writes for all.

    Every process calls a method at the same point; alone each of them does next to nothing.
    """

    rank: int = 0
    size: int = 1
    sharded: bool = False  # weights, gradients and optimizer: a part in each, or all in all?

    def spread(self, module: nn.Module) -> nn.Module:
        """The module with gradients that are means over the processes.

        Copies in all of them (DDP; Li et al. 2020, arXiv:2006.15704), or parts that are gathered
        layer by layer when they are needed (FSDP; Zhao et al. 2023, arXiv:2304.11277).
        """
        if self.size == 1:
            return module
        if not self.sharded:
            return nn.parallel.DistributedDataParallel(module)
        from torch.distributed.fsdp import fully_shard

        for stack in [part for part in module.modules() if isinstance(part, Stack)]:
            for layer in stack.layers:
                fully_shard(layer)
        return fully_shard(module)

    @contextmanager
    def summing(self, module: nn.Module, last: bool) -> Iterator[None]:
        """Exchange gradients in the backward pass of the last part of a batch only."""
        if self.sharded:
            module.set_requires_gradient_sync(last)
        with module.no_sync() if self.size > 1 and not (self.sharded or last) else nullcontext():
            yield

    def sum(self, number: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(number)
        return number

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if self.sharded else tensor

    def agree(self, *numbers: int) -> list[int]:
        """The largest that any process has, of each; on the CPU, where no GPU is waited for."""
        if self.size == 1:
            return list(numbers)
        largest = torch.tensor(numbers)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()

    def from_first(self, value: Any) -> Any:
        """What process 0 has."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """What each process has."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values


ALONE = Processes()


@contextmanager
def start_processes(device: torch.device, sharded: bool) -> Iterator[Processes]:
    """Those that torchrun has started, or this one alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        if sharded:
            raise InputError(
                "--shard needs several processes: "
                "torchrun --nproc-per-node N -m minitransformer train --shard"
            )
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, rank, size = next(dist.rendezvous("env://"))
    # After a restart torchrun's store still has the addresses of the processes that are gone.
    store = dist.PrefixStore(f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield Processes(rank, size, sharded and size > 1)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise InputError(f"process {rank} of {size} lost another one: {error}") from None
        raise
    finally:
        dist.destroy_process_group()
