"""Several processes that train one model: on the cores, the GPUs or the machines that torchrun has.

    torchrun --nproc-per-node 2 -m minitransformer train

Each process draws the whole batch of a step and keeps the rows number rank, rank + size, ...: so
together they see what one process would, and each knows the number of labels without asking.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

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
        waits = self.size > 1 and not self.sharded and not last
        with module.no_sync() if waits else nullcontext():
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

    def gather_weights(self, model: nn.Module) -> dict[str, Tensor] | None:
        """All of the weights, for process 0; None where they are in the model itself."""
        if not self.sharded:
            return None
        state_dict, options = _state_dict()
        weights = state_dict.get_model_state_dict(model, options=options)
        return weights if self.rank == 0 else None

    def optimizer_state(self, model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
        """What the optimizer remembers, as "parameter.name": all of it, for process 0.

        On one CPU these are the tensors that it goes on to change.
        """
        state_dict, options = _state_dict()
        known = state_dict.get_optimizer_state_dict(model, optimizer, options=options)
        return {
            f"{parameter}.{name}": value
            for parameter, state in known.get("state", {}).items()
            for name, value in state.items()
        }

    def load_optimizer_state(
        self, model: nn.Module, optimizer: Optimizer, remembered: Mapping[str, Tensor]
    ) -> None:
        """The inverse: each process is given all of it and takes its part."""
        state_dict, options = _state_dict()
        options = options if self.sharded else state_dict.StateDictOptions()
        known = state_dict.get_optimizer_state_dict(model, optimizer, options=options)
        for key, value in remembered.items() if known else ():
            parameter, _, name = key.rpartition(".")
            known["state"].setdefault(parameter, {})[name] = value
        options = replace(options, broadcast_from_rank0=self.sharded)
        state_dict.set_optimizer_state_dict(model, optimizer, known, options=options)

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


def _state_dict():
    """torch's module for states that may be spread over processes: a second to import."""
    from torch.distributed.checkpoint import state_dict

    return state_dict, state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)


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
