"""The optimizer Muon: it updates matrices equally in all directions."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Jordan et al. 2024: they pull singular values towards 1 as fast as possible
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
HALF = {"cuda": torch.bfloat16}  # on a CPU, small matrices gain nothing by it (measured: 96 wide)


def orthogonalized(matrices: Tensor, steps: int) -> Tensor:
    """Returns the matrices (N, R, C) with singular values changed to about 1.

    After five steps of the Newton-Schulz iteration of Jordan et al. 2024 they are 0.7 to 1.2. The
    result has the precision of the matrices.
    """
    a, b, c = COEFFICIENTS
    is_wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if is_wide else matrices.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if is_wide else x.mT


class Muon(torch.optim.AdamW):
    """Muon for the groups marked `hidden` (Jordan et al. 2024), AdamW for the rest.

    The momentum is Nesterov's. The step size follows Liu et al. 2025, section 2.2, so that the
    `lr` and `weight_decay` of AdamW fit. Matrices of one shape are multiplied together; `half`
    does it in bfloat16 on a GPU.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        momentum: float,
        ns_steps: int,
        half: bool = False,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, fused=True)
        self.momentum = momentum
        self.ns_steps = ns_steps
        self.half = half

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes a gradient step; returns the value of `closure`, like torch's optimizers."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"] if group["hidden"] else ():
                if weight.grad is not None:
                    shapes.setdefault(weight.shape, []).append(weight)
            for weights in shapes.values():
                self.step_together(weights, group["lr"], group["weight_decay"])
        super().step()
        return loss

    def step_together(self, weights: list[Tensor], lr: float, weight_decay: float) -> None:
        """Updates weights of one shape, and removes their gradients, so that AdamW skips them."""
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            weight.grad = None
            if weight not in self.state:
                # `step` is never read, but AdamW won't load a state without
                self.state[weight] = {
                    "step": torch.zeros(()),
                    "momentum_buffer": torch.zeros_like(weight),
                }
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(buffers, gradients, 1 - self.momentum)
        ahead = torch.stack(torch._foreach_lerp(gradients, buffers, self.momentum))
        precision = HALF.get(ahead.device.type, torch.float32) if self.half else torch.float32
        # a weight may be several matrices
        matrices = ahead.view(-1, *ahead.shape[-2:]).to(precision)
        updates = orthogonalized(matrices, self.ns_steps).to(ahead.dtype).view_as(ahead)
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
        alpha = -lr * 0.2 * max(weights[0].shape[-2:]) ** 0.5  # the factors of Liu et al. 2025
        torch._foreach_add_(weights, list(updates), alpha=alpha)
