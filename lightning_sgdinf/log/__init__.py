"""The record of a run: written while it trains, read when it is explained."""

from lightning_sgdinf.log.arrays import read_arrays as read_arrays
from lightning_sgdinf.log.arrays import write_arrays as write_arrays
from lightning_sgdinf.log.batch_bytes import decode_batch as decode_batch
from lightning_sgdinf.log.batch_bytes import encode_batch as encode_batch
from lightning_sgdinf.log.checksum import state_checksum as state_checksum
from lightning_sgdinf.log.memory import MemoryLog as MemoryLog
from lightning_sgdinf.log.reader import RunLog as RunLog
from lightning_sgdinf.log.reader import read_header as read_header
from lightning_sgdinf.log.records import CONTINUED as CONTINUED
from lightning_sgdinf.log.records import Clip as Clip
from lightning_sgdinf.log.records import Draw as Draw
from lightning_sgdinf.log.records import Header as Header
from lightning_sgdinf.log.records import Json as Json
from lightning_sgdinf.log.records import MicroBatch as MicroBatch
from lightning_sgdinf.log.records import ParamGroup as ParamGroup
from lightning_sgdinf.log.records import Step as Step
from lightning_sgdinf.log.recovery import RecoveryReport as RecoveryReport
from lightning_sgdinf.log.recovery import recover as recover
from lightning_sgdinf.log.reindexed import Reindexed as Reindexed
from lightning_sgdinf.log.reindexed import key_labels as key_labels
from lightning_sgdinf.log.reindexed import reindex as reindex
from lightning_sgdinf.log.store import LogSizes as LogSizes
from lightning_sgdinf.log.trajectory import Trajectory as Trajectory
from lightning_sgdinf.log.verify import VerifyReport as VerifyReport
from lightning_sgdinf.log.writer import LogWriter as LogWriter
