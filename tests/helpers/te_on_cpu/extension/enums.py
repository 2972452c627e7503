"""The extension's enumerations, by number."""

from __future__ import annotations

import enum

import torch


class DType(enum.IntEnum):
    """Types of what a tensor holds."""

    kByte = 0
    kInt32 = 2
    kFloat32 = 4
    kFloat16 = 5
    kBFloat16 = 6
    kFloat8E4M3 = 7
    kFloat8E5M2 = 8
    kFloat4E2M1 = 10


TORCH_TYPES = {
    DType.kByte: torch.uint8,
    DType.kInt32: torch.int32,
    DType.kFloat32: torch.float32,
    DType.kFloat16: torch.float16,
    DType.kBFloat16: torch.bfloat16,
    DType.kFloat8E4M3: torch.float8_e4m3fn,
    DType.kFloat8E5M2: torch.float8_e5m2,
}


def torch_type(number: int) -> torch.dtype:
    """Of a DType, or its number."""
    return TORCH_TYPES[DType(int(number))]


def _numbered(name: str, members: str) -> enum.EnumType:
    return enum.IntEnum(name, {member: number for number, member in enumerate(members.split())})  # type: ignore[return-value]


FP8FwdTensors = _numbered(
    "FP8FwdTensors", " ".join(f"GEMM{number}_{kind}" for number in (1, 2, 3) for kind in ("INPUT", "WEIGHT", "OUTPUT"))
)
FP8BwdTensors = _numbered(
    "FP8BwdTensors", " ".join(f"GRAD_{kind}{number}" for number in (1, 2, 3) for kind in ("OUTPUT", "INPUT"))
)
NVTE_QKV_Format = _numbered(
    "NVTE_QKV_Format",
    "NVTE_BSHD NVTE_SBHD NVTE_THD NVTE_SBHD_2BSHD NVTE_BSHD_2SBHD NVTE_THD_2BSHD NVTE_THD_2SBHD NVTE_BHSD "
    "NVTE_QKV_Format_NOT_SET",
)
_LAYOUTS = """
SB3HD SBH3D SBHD_SB2HD SBHD_SBH2D SBHD_SBHD_SBHD BS3HD BSH3D BSHD_BS2HD BSHD_BSH2D BSHD_BSHD_BSHD T3HD TH3D THD_T2HD THD_TH2D
THD_THD_THD SBHD_BSHD_BSHD BSHD_SBHD_SBHD THD_BSHD_BSHD THD_SBHD_SBHD Paged_KV_BSHD_BSHD_BSHD Paged_KV_BSHD_SBHD_SBHD
Paged_KV_SBHD_BSHD_BSHD Paged_KV_SBHD_SBHD_SBHD Paged_KV_THD_BSHD_BSHD Paged_KV_THD_SBHD_SBHD BHSD_BHSD_BHSD QKV_Layout_NOT_SET
"""
NVTE_QKV_Layout = _numbered("NVTE_QKV_Layout", " ".join(f"NVTE_{layout}" for layout in _LAYOUTS.split()))
NVTE_Bias_Type = _numbered("NVTE_Bias_Type", "NVTE_NO_BIAS NVTE_PRE_SCALE_BIAS NVTE_POST_SCALE_BIAS NVTE_ALIBI")
NVTE_Mask_Type = _numbered(
    "NVTE_Mask_Type",
    "NVTE_NO_MASK NVTE_PADDING_MASK NVTE_CAUSAL_MASK NVTE_PADDING_CAUSAL_MASK NVTE_CAUSAL_BOTTOM_RIGHT_MASK "
    "NVTE_PADDING_CAUSAL_BOTTOM_RIGHT_MASK",
)
NVTE_Softmax_Type = _numbered(
    "NVTE_Softmax_Type", "NVTE_VANILLA_SOFTMAX NVTE_OFF_BY_ONE_SOFTMAX NVTE_LEARNABLE_SOFTMAX"
)


class NVTE_Fused_Attn_Backend(enum.IntEnum):
    """cuDNN's attention."""

    NVTE_No_Backend = -1
    NVTE_F16_arbitrary_seqlen = 1
    NVTE_FP8 = 2


NVTEScalingMode = _numbered(
    "NVTEScalingMode",
    "NVTE_DELAYED_TENSOR_SCALING NVTE_MXFP8_1D_SCALING NVTE_BLOCK_SCALING_1D NVTE_BLOCK_SCALING_2D NVTE_NVFP4_1D_SCALING "
    "NVTE_INVALID_SCALING",
)
CommOverlapType = _numbered("CommOverlapType", "RS AG")
NVTERoutingMapFormat = _numbered("NVTERoutingMapFormat", "BYTEMAP BITMAP_U8")
NVTEQBHistogramMode = _numbered("NVTEQBHistogramMode", "TWO_KERNEL FUSED_ATOMIC")
