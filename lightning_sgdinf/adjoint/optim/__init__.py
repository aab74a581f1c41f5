"""The update rules that come with the package; importing this makes them known."""

from lightning_sgdinf.adjoint.optim.adam import AdamRule as AdamRule
from lightning_sgdinf.adjoint.optim.sgd import SgdRule as SgdRule
from lightning_sgdinf.adjoint.optim.sparse_adam import SparseAdamRule as SparseAdamRule
from lightning_sgdinf.adjoint.optim.torch_optim import TorchOptimRule as TorchOptimRule
