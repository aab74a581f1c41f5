"""Operations whose second derivative torch computes too slowly or not at all, done better while a step is replayed."""

from lightning_sgdinf.kernels.attention import ATTENTION as ATTENTION
from lightning_sgdinf.kernels.channels_last import Twins as Twins
from lightning_sgdinf.kernels.checkpointed import plain_checkpoints as plain_checkpoints
from lightning_sgdinf.kernels.convolution_parts import CONVOLUTION_PARTS as CONVOLUTION_PARTS
from lightning_sgdinf.kernels.device_layers import DEVICE_LAYERS as DEVICE_LAYERS
from lightning_sgdinf.kernels.handlers import layer_handlers as layer_handlers
from lightning_sgdinf.kernels.held import HeldConstants as HeldConstants
from lightning_sgdinf.kernels.held import Phase as Phase
from lightning_sgdinf.kernels.held import UnlinkedHook as UnlinkedHook
from lightning_sgdinf.kernels.held import first_only as first_only
from lightning_sgdinf.kernels.intercept import Handler as Handler
from lightning_sgdinf.kernels.intercept import Interceptor as Interceptor
from lightning_sgdinf.kernels.lookup import RenormalisedEmbedding as RenormalisedEmbedding
from lightning_sgdinf.kernels.lookup import lookup_handlers as lookup_handlers
from lightning_sgdinf.kernels.loss_formulas import LOSS_FORMULAS as LOSS_FORMULAS
from lightning_sgdinf.kernels.loss_formulas import formula_of as formula_of
from lightning_sgdinf.kernels.once_differentiable import WAYS_AROUND as WAYS_AROUND
from lightning_sgdinf.kernels.once_differentiable import once_differentiable_in as once_differentiable_in
from lightning_sgdinf.kernels.running_statistics import RunningStatistics as RunningStatistics
from lightning_sgdinf.kernels.sparse_rows import SparseRows as SparseRows
from lightning_sgdinf.kernels.stack import Axes as Axes
from lightning_sgdinf.kernels.stack import on_stack as on_stack
from lightning_sgdinf.kernels.vmap_layers import VMAP_LAYERS as VMAP_LAYERS
from lightning_sgdinf.kernels.weight_norm import WEIGHT_NORM as WEIGHT_NORM
