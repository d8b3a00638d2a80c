"""The processes that train one run together, and what they tell each other. No torch until they join.

Each is called a rank and has a number, as in torch.distributed. Rank 0 leads: it alone writes files
and talks to the terminal. The ranks are started by the lab itself (`training/launch.py`), by torchrun
or by Slurm's srun.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lmlab.errors import UserError
from lmlab.signals import ending_at_once
from lmlab.terminal import after_a_second, tell

if TYPE_CHECKING:
    from torch import Tensor

QUIET = ("TORCH_CPP_LOG_LEVEL", "ERROR")  # a variable that torch reads: advice on DDP is not shown
RANK_KEYS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # that Lightning reads
PORTS = range(15_000, 30_000)  # on one of which rank 0 listens, under Slurm
WAITING = 5  # seconds for the others before a rank says that it waits
HANG = timedelta(minutes=10)  # of a rank that does not answer within a step
PATIENCE = timedelta(days=365)  # for what rank 0 does alone, such as evaluations of a person's own
LATE_WORDS = ("timed out", "timeout")  # what torch and gloo say of a rank that does not answer
NO_ADDRESS = "Unable to find address for"  # what gloo says of a network interface that is not there
LOST_WORDS = (
    *LATE_WORDS,
    "connection closed",
    "connection reset",
    "socket closed",
    "pair closure",
    "gloo/transport",
    "broken pipe",
)


class LostContact(UserError):
    """Another rank has ended, or `hangs`. Which one it is, this process cannot know."""

    def __init__(self, hangs: bool) -> None:
        how = "does not answer" if hangs else "has ended"
        super().__init__(f"another process of this run {how}")
        self.hangs = hangs


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that were started together, and what has started them."""

    rank: int
    size: int
    local_rank: int
    """Its number among those of its machine."""

    starter: str
    """torchrun or srun; lmlab if the lab itself has started it, in the way of torchrun."""


def place() -> Place | None:
    """Returns the place that torchrun or srun has given this process, or None for a single one.

    Raises UserError if they left a variable out, or another program wrote something else in it.
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env and "RANK" in env:
        rank, size, local = map(number_in, ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return Place(rank, size, local, "torchrun")
    keys = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    if "SLURM_STEP_NUM_TASKS" in env and number_in("SLURM_STEP_NUM_TASKS") > 1 and keys[0] in env:
        rank, size, local = map(number_in, keys)
        return Place(rank, size, local, "srun")
    return None


def number_in(key: str) -> int:
    """Returns the number in a variable of the environment. Raises UserError if there is none."""
    value = os.environ.get(key, "")
    if not value.isdecimal():
        raise UserError(
            f"{key}={value}: this variable of the environment needs a whole number, as torchrun or srun "
            f"sets it; for a run that neither has started, type: unset {key}"
        )
    return int(value)


def check_variables() -> None:
    """Raises UserError if Lightning could not be imported: it looks then for the rank of a process."""
    for key in RANK_KEYS:
        if key in os.environ:
            number_in(key)


def variables(own: Place, address: str, port: int) -> dict[str, str]:
    """Returns the variables by which torch and Lightning know a place, as torchrun sets them.

    `address` and `port` are where the ranks find each other. If the lab has started the ranks, that
    is its own process; else rank 0.
    """
    found = {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(own.rank),
        "WORLD_SIZE": str(own.size),
        "LOCAL_RANK": str(own.local_rank),
        "GROUP_RANK": "0",  # of the machine
    }
    if own.starter == "lmlab":
        found |= {"TORCHELASTIC_RUN_ID": "lmlab", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return found


class Ranks:
    """The ranks of a run, as one of them sees them. A single process has itself alone."""

    rank = 0
    size = 1
    tells = True
    """Whether this process tells the person at the terminal that it stops."""

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone writes."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """Returns which rows of a batch this rank takes. All ranks have as many."""
        share = batch_size // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def agree(self, *votes: int) -> list[int]:
        """Returns the largest vote of all ranks on each question."""
        return [*votes]

    def gather(self, number: float) -> list[float]:
        """Returns the numbers of all ranks, in their order."""
        return [number]

    def add_up(self, tensor: "Tensor") -> None:
        """Puts the sum over all ranks into a tensor."""

    def copy_first(self, tensor: "Tensor") -> None:
        """Puts the numbers of rank 0 into a tensor."""

    def share(self, value: Any) -> Any:
        """Returns the value that rank 0 has passed. The others wait for as long as it takes."""
        return value

    def wait(self) -> None:
        """Waits until all ranks are here, for as long as it takes."""


class ConnectedRanks(Ranks):
    """Several processes that are connected by torch.distributed."""

    def __init__(self, own: Place) -> None:
        import torch.distributed as dist

        self.rank = own.rank
        self.size = own.size
        self.tells = own.rank == 0 and own.starter != "lmlab"
        self.dist = dist
        self.patient = dist.new_group(backend="gloo", timeout=PATIENCE)

    def agree(self, *votes: int) -> list[int]:
        import torch

        largest = torch.tensor(votes)
        with talking():
            self.dist.all_reduce(largest, self.dist.ReduceOp.MAX)
        return [int(vote) for vote in largest.tolist()]

    def gather(self, number: float) -> list[float]:
        import torch

        own = torch.tensor([number], dtype=torch.float64)
        parts = [torch.zeros_like(own) for _ in range(self.size)]
        with talking():
            self.dist.all_gather(parts, own)
        return [part.item() for part in parts]

    def add_up(self, tensor: "Tensor") -> None:
        with talking():
            self.dist.all_reduce(tensor)

    def copy_first(self, tensor: "Tensor") -> None:
        import torch

        content = tensor.detach().reshape(-1).contiguous().view(torch.uint8)  # gloo takes no bool
        with talking():
            self.dist.broadcast(content, src=0)
        tensor.copy_(content.view(tensor.dtype).view_as(tensor))

    def share(self, value: Any) -> Any:
        values = [value]
        with talking():
            self.dist.broadcast_object_list(values, src=0, group=self.patient)
        return values[0]

    def wait(self) -> None:
        with talking():
            self.dist.barrier(self.patient)


ALONE = Ranks()
HERE: list[Ranks] = [ALONE]  # the last one is that of this process


def here() -> Ranks:
    """Returns the ranks of which this process is one."""
    return HERE[-1]


def lost_contact(error: BaseException) -> LostContact:
    """Returns the error in the lab's words for one of torch's that `is_lost`."""
    if isinstance(error, LostContact):
        return error
    return LostContact(any(word in str(error).lower() for word in LATE_WORDS))


def is_lost(error: BaseException) -> bool:
    """Returns whether torch raised an error because another rank has ended or does not answer."""
    import torch.distributed as dist

    if isinstance(error, LostContact | dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in LOST_WORDS)


@contextmanager
def talking() -> Iterator[None]:
    """A context in which torch's error about another rank becomes LostContact."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        raise lost_contact(error) from None


@contextmanager
def finding_interfaces() -> Iterator[None]:
    """A context in which a network interface that is not there is a UserError."""
    try:
        yield
    except RuntimeError as error:
        if NO_ADDRESS not in str(error):
            raise
        name = os.environ.get("GLOO_SOCKET_IFNAME", "")
        raise UserError(
            f"GLOO_SOCKET_IFNAME={name}: this variable of the environment needs the name of a network "
            "interface of this machine"
        ) from None


@contextmanager
def waiting_for_others(own: Place) -> Iterator[None]:
    """A context in which a rank waits for the others, says so after a while, and ends at a signal."""
    port = os.environ.get("MASTER_PORT", "")
    where = f"{os.environ.get('MASTER_ADDR', '')}:{port}"
    told_by = "SLURM_PROCID" if own.starter == "srun" else "RANK"
    line = (
        f"rank {own.rank} of {own.size} waits for the others at {where}; a run by itself needs an "
        f"environment without {told_by}, which {own.starter} sets"
    )
    with ending_at_once(), ExitStack() as stack:
        if own.starter != "lmlab":
            stack.enter_context(after_a_second(lambda: tell(line), WAITING))
        yield


@contextmanager
def joined(own: Place) -> Iterator[Ranks]:
    """A context in which this process is connected with the others of its run.

    At its end rank 0 tells the others that nothing else follows.
    """
    import torch
    import torch.distributed as dist

    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(own.local_rank)
    if own.starter == "srun":
        set_place_of_slurm(own)
    with talking(), finding_interfaces(), waiting_for_others(own):
        dist.init_process_group(backend, rank=own.rank, world_size=own.size, timeout=HANG)
        ranks = ConnectedRanks(own)
    HERE.append(ranks)
    try:
        yield ranks
        end(ranks)
    except SystemExit:
        end(ranks)
        raise
    finally:
        HERE.pop()


def end(ranks: Ranks) -> None:
    """Lets the others end, if this is rank 0, and disconnects."""
    import torch.distributed as dist

    if ranks.leads:
        ranks.share(None)
    dist.destroy_process_group()


def set_place_of_slurm(own: Place) -> None:
    """Writes this process's place, and where rank 0 listens, into the environment, as torchrun does.

    Two steps of Slurm that run on one machine have different ports.
    """
    from lightning_fabric.plugins.environments import SLURMEnvironment

    env = os.environ
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST")
    if not nodes:
        raise UserError("SLURM_NODELIST: this variable of the environment is missing; srun sets it")
    job, step = (number_in(key) if key in env else 0 for key in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    address = SLURMEnvironment.resolve_root_node_address(nodes)
    env.update(variables(own, address, PORTS[(7 * job + step) % len(PORTS)]))
    env["GROUP_RANK"] = env.get("SLURM_NODEID", "0")
