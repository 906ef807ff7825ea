"""Times SAELens' own training step, in an environment that has it: run as a script, not imported.

    PYTHON saelens_peer.py ROWS.npy WIDTH K BATCH THREADS DEAD LEARNING_RATE

Prints its version, then reads numbers of steps from standard input. After each it trains so many steps and
prints one line: the seconds they took and the variance unexplained before each. In between it does nothing,
so that it can take its turn with others.
"""

from __future__ import annotations

import json
import sys
import time


def say(line: str) -> None:
    """Answer with one line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: list[str]) -> None:
    """Train on batches of the rows with the released package and its defaults."""
    import numpy as np
    import sae_lens
    import torch
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    rows = torch.from_numpy(np.load(argv[0]))
    width, k, batch, threads, dead = (int(text) for text in argv[1:6])
    rate = float(argv[6])
    torch.set_num_threads(threads)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=rows.shape[1], d_sae=width, k=k))
    config = SAETrainerConfig(
        total_training_samples=1 << 40, train_batch_size_samples=batch, lr=rate, lr_end=rate / 10
    )
    trainer = SAETrainer(config, sae, iter([]))
    variance = float((rows - rows.mean(0)).square().sum(1).mean())
    generator = torch.Generator().manual_seed(0)
    say(sae_lens.__version__)
    for line in sys.stdin:
        batches = [rows[torch.randint(0, len(rows), (batch,), generator=generator)] for _ in range(int(line))]
        unexplained = []
        begin = time.perf_counter()
        for chosen in batches:
            # As in the other variants: so many features are declared dead, and its auxiliary loss has work
            trainer.n_forward_passes_since_fired[:dead] = trainer.cfg.dead_feature_window + 1
            made = trainer.step(chosen)
            trainer.n_training_steps += 1
            unexplained.append(float(made.losses["mse_loss"]) / variance)
        found = {"seconds": time.perf_counter() - begin, "fvu": unexplained}
        say(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
