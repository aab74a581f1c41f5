"""The loop over the recorded steps, and the jobs that give scores."""

from lightning_sgdinf.scoring.jobs import Job as Job
from lightning_sgdinf.scoring.jobs import Method as Method
from lightning_sgdinf.scoring.jobs import asks_a_query as asks_a_query
from lightning_sgdinf.scoring.jobs import job_for as job_for
from lightning_sgdinf.scoring.jobs import require_method as require_method
from lightning_sgdinf.scoring.result import JobResult as JobResult
from lightning_sgdinf.scoring.settings import Settings as Settings
from lightning_sgdinf.scoring.walk import Walk as Walk
