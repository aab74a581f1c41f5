"""The checks that a certificate is made from."""

from lightning_sgdinf.checks.amplification import Growth as Growth
from lightning_sgdinf.checks.beside import check_beside as check_beside
from lightning_sgdinf.checks.beside import checking as checking
from lightning_sgdinf.checks.beside import remarks_on as remarks_on
from lightning_sgdinf.checks.gradient import check_gradient as check_gradient
from lightning_sgdinf.checks.logged_query import check_logged_query as check_logged_query
from lightning_sgdinf.checks.plan import Plan as Plan
from lightning_sgdinf.checks.plan import fast_plan as fast_plan
from lightning_sgdinf.checks.rerun import open_rerun as open_rerun
from lightning_sgdinf.checks.step_replay import StepComparison as StepComparison
from lightning_sgdinf.checks.swap import SwapComparison as SwapComparison
from lightning_sgdinf.checks.trust import Allowance as Allowance
from lightning_sgdinf.checks.trust import Reached as Reached
from lightning_sgdinf.checks.trust import check_trust as check_trust
from lightning_sgdinf.checks.trust import direct_allowance as direct_allowance
from lightning_sgdinf.checks.trust import fast_allowance as fast_allowance
from lightning_sgdinf.checks.trust import full_allowance as full_allowance
from lightning_sgdinf.checks.trust import window_lengths as window_lengths
