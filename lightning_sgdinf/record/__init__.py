"""Lightning's hooks in, records out."""

from lightning_sgdinf.record.budget import Budget as Budget
from lightning_sgdinf.record.callback import TrajectoryRecorder as TrajectoryRecorder
from lightning_sgdinf.record.keep import Every as Every
from lightning_sgdinf.record.keep import Final as Final
from lightning_sgdinf.record.keep import Keep as Keep
from lightning_sgdinf.record.keep import LastEpochs as LastEpochs
from lightning_sgdinf.record.keep import every as every
from lightning_sgdinf.record.keep import last_epochs as last_epochs
from lightning_sgdinf.record.stored_batches import ExampleKey as ExampleKey
from lightning_sgdinf.record.writer import Writer as Writer
