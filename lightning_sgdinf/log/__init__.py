"""The record of a run: written while it trains, read when it is explained."""

from lightning_sgdinf.log.arrays import read_arrays as read_arrays
from lightning_sgdinf.log.arrays import write_arrays as write_arrays
from lightning_sgdinf.log.checksum import state_checksum as state_checksum
from lightning_sgdinf.log.memory import MemoryLog as MemoryLog
from lightning_sgdinf.log.reader import RunLog as RunLog
from lightning_sgdinf.log.records import Clip as Clip
from lightning_sgdinf.log.records import Draw as Draw
from lightning_sgdinf.log.records import Header as Header
from lightning_sgdinf.log.records import MicroBatch as MicroBatch
from lightning_sgdinf.log.records import ParamGroup as ParamGroup
from lightning_sgdinf.log.records import Step as Step
from lightning_sgdinf.log.trajectory import Trajectory as Trajectory
from lightning_sgdinf.log.verify import VerifyReport as VerifyReport
from lightning_sgdinf.log.writer import LogWriter as LogWriter
