"""Lightning's own transformer demo, as it is: recorded, scored and reported by one added callback, and a warning.

    python examples/06_a_module_of_others.py

Takes some seconds: four dozen short sequences of a made-up text, three of them scrambled. The module is not ours, and
not changed. Its learning rate is so high that small changes of the run grow several hundredfold: the scores are the
right derivative of this run, but no forecast of leaving a sequence out. The certificate says so beside every number;
one who looked at the ranking alone would be misled.
"""

import os
import tempfile
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.demos import LightningTransformer, WikiText2
from torch.utils.data import DataLoader, Subset

from lightning_sgdinf import InfluenceRunner, ScoreOnFitEnd

SENTENCES = ("the cat sat on the mat", "a dog ran in the park", "the cat sat on the park", "a dog ran on the mat")
SCRAMBLED = "mat the on ran dog a"


def main() -> None:
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the demo reads, and otherwise fetches, data/wikitext-2.txt
        try:
            train_and_score()
        finally:
            os.chdir(here)


def train_and_score() -> None:
    pl.seed_everything(0, verbose=False)
    Path("data").mkdir()
    Path("data/wikitext-2.txt").write_text("\n".join((*SENTENCES * 10, *[SCRAMBLED] * 3, *SENTENCES * 4)))
    texts = WikiText2(block_size=7, download=False)  # a line with its end is one sequence
    train, val = DataLoader(Subset(texts, range(43)), batch_size=8, shuffle=True), Subset(texts, range(43, 56))

    scoring = ScoreOnFitEnd("run.tlog", runner=InfluenceRunner(accelerator="cpu", progress=False), shown=3)
    trainer = pl.Trainer(
        max_epochs=1, gradient_clip_val=0.5, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[scoring],
    )  # fmt: skip
    trainer.fit(LightningTransformer(vocab_size=texts.vocab_size), train, DataLoader(val, batch_size=13))

    scores = scoring.scores
    print(scores.most_harmful(5))
    print(*scores.certificate.summary(), sep="\n")
    print(f"The scrambled sequences have the ranks {scores.ranks()[40:43].tolist()} of {len(scores)}.")
    print(f"The page has {scoring.report.stat().st_size // 1024} KiB and begins with the warning.")


if __name__ == "__main__":
    main()
