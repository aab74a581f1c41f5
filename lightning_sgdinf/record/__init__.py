"""Lightning's hooks in, records out."""

from lightning_sgdinf.record.budget import Budget as Budget
from lightning_sgdinf.record.callback import TrajectoryRecorder as TrajectoryRecorder
from lightning_sgdinf.record.snapshots import Every as Every
from lightning_sgdinf.record.snapshots import Final as Final
from lightning_sgdinf.record.snapshots import Keep as Keep
from lightning_sgdinf.record.snapshots import LastEpochs as LastEpochs
from lightning_sgdinf.record.snapshots import every as every
from lightning_sgdinf.record.snapshots import last_epochs as last_epochs
