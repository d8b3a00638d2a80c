"""A plug-in for tests that kill a run: a callback with state, which moves the weights."""

from pytorch_lightning import Callback

import lmlab


@lmlab.register.callback("drift")
class Drift(Callback):
    """Shifts all weights a little more after each step."""

    def __init__(self):
        self.steps = 0

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.steps:
            return
        self.steps = trainer.global_step
        module.log("drift", self.steps)
        for weight in module.parameters():
            weight.data.add_(1e-4 * self.steps)

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]
