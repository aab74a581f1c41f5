"""Operations whose second derivative torch computes more slowly than it has to, done better while a step is replayed.

Values and first derivatives keep every bit; only what replay adds to training changes. BatchNorm, whose running
statistics are differentiated too, is in `running_statistics`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning_sgdinf.kernels import convolution, max_pool, relu
from lightning_sgdinf.kernels.channels_last import Twins
from lightning_sgdinf.kernels.intercept import Handler


def layer_handlers(twins: Twins) -> Mapping[Callable[..., Any], Handler]:
    """Return the handlers of all layers for an `Interceptor` during one pass."""
    return {**convolution.handlers(twins), **max_pool.handlers(twins), **relu.handlers(twins)}
