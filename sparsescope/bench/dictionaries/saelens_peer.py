"""Times SAELens' own training step, in an environment that has it: run as a script, not imported.

    PYTHON saelens_peer.py ROWS.npy WIDTH K BATCH STEPS THREADS LEARNING_RATE

Prints one JSON line: version, seconds of every step after two warm-up steps.
"""

from __future__ import annotations

import json
import sys
import time


def main(argv: list[str]) -> None:
    """Train on batches of the rows with the released package and its defaults."""
    import numpy as np
    import sae_lens
    import torch
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    rows = torch.from_numpy(np.load(argv[0]))
    width, k, batch, steps, threads = (int(text) for text in argv[1:6])
    torch.set_num_threads(threads)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=rows.shape[1], d_sae=width, k=k))
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=batch * (steps + 2), train_batch_size_samples=batch, lr=float(argv[6])
        ),
        sae,
        iter([]),
    )
    generator = torch.Generator().manual_seed(0)
    seconds = []
    for _ in range(steps + 2):
        chosen = rows[torch.randint(0, len(rows), (batch,), generator=generator)]
        begin = time.perf_counter()
        trainer.step(chosen)
        trainer.n_training_steps += 1
        seconds.append(time.perf_counter() - begin)
    sys.stdout.write(json.dumps({"version": sae_lens.__version__, "seconds": seconds[2:]}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
