"""Argument checks shared by layouts and launchers: each names the argument, got and expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tersor.kernels.errors import LayoutError

ACTIVATION_DTYPES = (torch.float32, torch.bfloat16)


def check_tensor(
    name: str,
    tensor: Tensor,
    *,
    shape: tuple[int | None, ...] | None = None,
    dtypes: Sequence[torch.dtype] = (),
    device: torch.device | None = None,
    contiguous: bool = True,
) -> None:
    """Raises LayoutError unless `tensor` is what a kernel relies on; None is any size."""
    if shape is not None and (
        tensor.dim() != len(shape)
        or any(want not in (None, got) for want, got in zip(shape, tensor.shape, strict=True))
    ):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise LayoutError(f"`{name}` has shape {list(tensor.shape)}, expected [{expected}]")
    if dtypes and tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype) for dtype in dtypes)
        raise LayoutError(f"`{name}` has dtype {tensor.dtype}, expected {expected}")
    if device is not None and tensor.device != device:
        raise LayoutError(f"`{name}` is on {tensor.device}, expected {device}")
    if contiguous and not tensor.is_contiguous():
        raise LayoutError(
            f"`{name}` of shape {list(tensor.shape)} has strides {list(tensor.stride())}, expected "
            "a contiguous tensor; call .contiguous() where the copy is wanted"
        )


def check_operand(x: Tensor, bias: Tensor | None, *, n: int, k: int, device: torch.device) -> None:
    """Checks the operands of a layout's matmul: x [..., K] in fp32 or bf16, bias [N] or None.

    Raises:
        LayoutError: an operand has another shape, dtype or device.
    """
    if x.dim() == 0 or x.shape[-1] != k:
        raise LayoutError(f"`x` has shape {list(x.shape)}, expected [..., {k}]")
    # Called for every matmul of a decode step, where a small model's products take tens of
    # microseconds: what is right must not pay for the message about what is wrong.
    if x.dtype not in ACTIVATION_DTYPES or x.device != device:
        check_tensor("x", x, dtypes=ACTIVATION_DTYPES, device=device, contiguous=False)
    if bias is not None:
        check_tensor("bias", bias, shape=(n,), device=device)


def as_rows(x: Tensor) -> Tensor:
    """Views x [..., K] as a contiguous [M, K], copied only where it must be."""
    if x.dim() != 2:
        x = x.reshape(-1, x.shape[-1])
    return x if x.is_contiguous() else x.contiguous()


def shaped_like(y: Tensor, x: Tensor) -> Tensor:
    """Gives y [M, N] the leading dimensions of x [..., K], whose rows it comes from."""
    return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[-1])


def check_indices(indices: Tensor, device: torch.device) -> None:
    """Checks the indices of an embedding lookup: int64 on the device of the weight."""
    check_tensor("indices", indices, dtypes=(torch.int64,), device=device, contiguous=False)


def check_planes(
    layout: str,
    planes: Mapping[str, Tensor],
    expected: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
) -> None:
    """Raises LayoutError unless `planes` are exactly `expected` (name -> dtype, shape)."""
    if planes.keys() != expected.keys():
        missing = sorted(expected.keys() - planes.keys())
        unknown = sorted(planes.keys() - expected.keys())
        raise LayoutError(
            f"layout `{layout}` is made of the planes {sorted(expected)}; missing: {missing}, "
            f"unknown: {unknown}"
        )
    for name, (dtype, shape) in expected.items():
        check_tensor(
            f"{layout}.{name}", planes[name], shape=shape, dtypes=(dtype,), contiguous=False
        )


def check_matrix_shape(layout: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns (N, K) of a two-dimensional, non-empty weight, or raises LayoutError."""
    if len(shape) != 2 or min(shape) < 1:
        raise LayoutError(
            f"layout `{layout}` holds matrices [N, K] with N, K >= 1, got shape {list(shape)}; "
            "use `dense`"
        )
    return shape[0], shape[1]


def check_floating(layout: str, dtype: torch.dtype) -> None:
    """Raises LayoutError unless the logical dtype of a quantized weight is a floating one."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise LayoutError(
            f"layout `{layout}` quantizes float32, bfloat16 or float16 weights, got {dtype}; "
            "use `dense`"
        )
