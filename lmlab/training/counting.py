"""Models that are trained by counting: all at once, with no steps, optimizer or way to go on from
the middle.
"""

import math
import time
from pathlib import Path
from typing import Any

from lmlab.runs.checkpoints import SealedCheckpointIO
from lmlab.training.recorder import Recorder
from lmlab.training.step import LanguageModule


class CountRecorder(Recorder):
    """Evaluates and keeps what was counted as other models' steps are."""

    def count(self, module: LanguageModule) -> None:
        self.module, begun = module, time.perf_counter()
        module.model.count(self.data.train)
        self.train_seconds, self.last = time.perf_counter() - begun, True
        self.run.update(n_params=module.model.n_params())
        self.evaluate(self, module)
        self.save(self, module)
        self.on_train_end()

    def save_checkpoint(self, path: Path) -> None:
        """In the place of Lightning's Trainer."""
        checkpoint = {"state_dict": self.module.state_dict()}
        self.on_save_checkpoint(None, self.module, checkpoint)
        SealedCheckpointIO().save_checkpoint(checkpoint, path)

    def totals(self) -> dict[str, Any]:
        tokens, seconds = len(self.data.train), self.train_seconds
        return {
            "step": 0,
            "tokens": tokens,
            "flops": 0,
            "train_seconds": seconds,
            "tokens_per_second": tokens / seconds if seconds else math.nan,
        }
