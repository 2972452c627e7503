"""Builds the Megatron model of a Hugging Face config, on any rank of any layout. The only place that constructs models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.fusions.fused_bias_geglu import quick_gelu
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_config import TransformerConfig

from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
from dasd_megatron.cpu_backend.layers import checkpoint_keys, cpu_block_spec, cpu_layer_spec
from dasd_megatron.megatron_model.attention_backend import without_unfused_attention
from dasd_megatron.megatron_model.moe_router import use_pack_router
from dasd_megatron.megatron_model.recompute_experts import recompute_experts
from dasd_megatron.models.hf_model import HFModel
from dasd_megatron.utils.errors import UserError

_ACTIVATIONS = {"silu": torch.nn.functional.silu, "quick_gelu": quick_gelu}
_ATTENTIONS = {"auto": AttnBackend.auto, "cudnn": AttnBackend.fused, "flash": AttnBackend.flash}
# Transformer Engine names the weights and biases of grouped experts by their number.
_GROUPED_EXPERT = re.compile(r"experts\.(linear_fc\d)\.(weight|bias)(\d+)$")


@dataclass(frozen=True)
class ModelOptions:
    """What a model's construction depends on beside its config and layout.

    Attributes:
        dtype: of parameters and activations.
        fp8, fp8_bf16_layers, attention, moe_aux_loss_coeff: see `training` in the recipe.
        memory: see `memory` in the recipe.
    """

    dtype: torch.dtype = torch.float32
    fp8: str | None = None
    fp8_bf16_layers: int = 0
    attention: str = "auto"
    moe_aux_loss_coeff: float | None = None
    memory: MemoryConfig = field(default_factory=MemoryConfig)

    @classmethod
    def of(cls, training: TrainingConfig, memory: MemoryConfig) -> ModelOptions:
        """From the recipe's sections."""
        dtype = torch.bfloat16 if training.precision == "bf16" else torch.float32
        return cls(
            dtype, training.fp8, training.fp8_bf16_layers, training.attention, training.moe_aux_loss_coeff, memory
        )


def transformer_config(hf: HFModel, parallel: ParallelConfig, options: ModelOptions) -> TransformerConfig:
    """Megatron's config. Raises UserError where Megatron refuses it."""
    shape = hf.shape
    on_gpu = torch.cuda.is_available()
    arguments: dict[str, Any] = {
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_query_groups": shape.query_groups,
        "kv_channels": shape.head_dim,
        "normalization": "RMSNorm",
        "layernorm_epsilon": hf.norm_epsilon,
        "gated_linear_unit": True,
        "activation_func": "silu",
        "add_bias_linear": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        # Scaled rotary embeddings put a factor on queries and keys: their product gets its square.
        "softmax_scale": hf.rope.attention_factor**2 / shape.head_dim**0.5,
        "params_dtype": options.dtype,
        "pipeline_dtype": options.dtype,
        "bf16": options.dtype is torch.bfloat16,
        # Loss and gradients are sums, divided by the targets of the global batch: the token mean in every layout.
        "calculate_per_token_loss": True,
        "use_cpu_initialization": not on_gpu,
        "perform_initialization": False,  # weights always come from a checkpoint
        "apply_rope_fusion": on_gpu,
        "bias_activation_fusion": on_gpu,
        "gradient_accumulation_fusion": False,
        "masked_softmax_fusion": False,
        "persist_layer_norm": False,
        "attention_backend": _ATTENTIONS[options.attention],
    }
    arguments |= hf.megatron_arguments
    arguments["activation_func"] = _ACTIVATIONS[arguments["activation_func"]]
    if shape.experts:
        arguments |= _experts(hf, options, on_gpu)
    arguments |= _parallelism(parallel) | _recompute(options, bool(shape.experts)) | _fp8(options)
    try:
        return TransformerConfig(**arguments)
    except (ValueError, AssertionError) as error:
        raise UserError(f"{hf.folder}: Megatron can't build this model with these settings: {error}") from error


def build_model(hf: HFModel, parallel: ParallelConfig, options: ModelOptions, max_length: int) -> list[GPTModel]:
    """This rank's model chunks (one without interleaving), weights not yet loaded."""
    config = transformer_config(hf, parallel, options)
    with without_unfused_attention(max_length):
        chunks = [_build_chunk(hf, config, parallel, chunk, max_length) for chunk in range(parallel.virtual_pipeline)]
    if hf.shape.experts and options.memory.recompute == "selective":
        for chunk in chunks:
            recompute_experts(chunk)
    return chunks


def padded_vocabulary(vocabulary: int, tensor_parallel: int) -> int:
    """Rows of the embedding: the next multiple of the tensor-parallel size. Padded rows take no part in the loss."""
    return -(-vocabulary // tensor_parallel) * tensor_parallel


def named_weights(chunks: Sequence[GPTModel]) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Parameters by the names that conversion tables use; on a rank that holds the whole model."""
    for chunk in chunks:
        keys = {} if torch.cuda.is_available() else checkpoint_keys(chunk.config)
        for name, parameter in chunk.named_parameters():
            for own, in_checkpoint in keys.items():
                name = name.replace(own, in_checkpoint)
            yield _GROUPED_EXPERT.sub(r"experts.local_experts.\3.\1.\2", name), parameter


def unwrap(chunk: torch.nn.Module) -> GPTModel:
    """The model inside Megatron's wrappers for data parallelism and half precision."""
    while not isinstance(chunk, GPTModel):
        chunk = chunk.module  # type: ignore[assignment]
    return chunk


def _build_chunk(
    hf: HFModel, config: TransformerConfig, parallel: ParallelConfig, chunk: int, max_length: int
) -> GPTModel:
    interleaved = parallel.virtual_pipeline > 1
    vp_stage = chunk if interleaved else None
    model = GPTModel(
        config,
        _block_spec(config, vp_stage),
        vocab_size=padded_vocabulary(hf.shape.vocabulary, parallel.tensor),
        max_sequence_length=max_length,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=not interleaved, vp_stage=vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=not interleaved, vp_stage=vp_stage),
        position_embedding_type="rope",
        share_embeddings_and_output_weights=hf.shape.tied,
        vp_stage=vp_stage,
    )
    model.rotary_pos_emb.inv_freq = hf.rope.inverse_frequencies
    model.rotary_pos_emb.get_rotary_seq_len = rotary_length
    _mark_sinks(model, parallel.context)
    _leave_out_extra_states(model)
    if torch.cuda.is_available():
        model.cuda(torch.cuda.current_device())
    return model.to(dtype=config.params_dtype)


def rotary_length(*arguments: Any) -> int:
    """In place of Megatron's get_rotary_seq_len, whose last argument describes the pack: the longest document, rounded up.

    Angles are kept for 32 lengths: 1 GiB at 64K, if each pack had its own. With four lengths between powers of two it is a fifth.
    """
    longest: int = arguments[-1].max_seqlen_q
    step = 1 << max(0, (longest - 1).bit_length() - 3)
    return -(-longest // step) * step


def _leave_out_extra_states(model: GPTModel) -> None:
    """Transformer Engine's are copies of FP8's scales to host memory, pickled, in every state dict.

    Nothing here reads them (training/checkpoint/fp8_scales.py saves the scales), and Megatron would unpickle those of experts.
    """
    for module in model.modules():
        if hasattr(module, "fp8_meta"):
            module.get_extra_state = lambda: torch.empty(0, dtype=torch.uint8)


def _mark_sinks(model: GPTModel, context: int) -> None:
    """Each tensor-parallel rank has its own heads' sinks; unmarked, those of the first rank alone count in the norm.

    Transformer Engine gives every context-parallel rank the gradient over all tokens, and Megatron adds up those of the ranks.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(".softmax_offset"):
            set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=0, stride=1)
            if context > 1 and torch.cuda.is_available():
                parameter.register_hook(lambda gradient: gradient / context)


def _block_spec(config: TransformerConfig, vp_stage: int | None) -> object:
    on_gpu = torch.cuda.is_available()
    layer = _transformer_engine_layer_spec(config) if on_gpu else cpu_layer_spec(config)
    if config.num_moe_experts:
        layer.submodules.mlp = use_pack_router(layer.submodules.mlp)
    return layer if on_gpu else cpu_block_spec(config, layer, vp_stage)


def _transformer_engine_layer_spec(config: TransformerConfig) -> Any:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

    return get_gpt_layer_with_transformer_engine_spec(
        num_experts=config.num_moe_experts,
        moe_grouped_gemm=config.moe_grouped_gemm,
        qk_layernorm=config.qk_layernorm,
    )


def _parallelism(parallel: ParallelConfig) -> dict[str, Any]:
    interleaved = parallel.virtual_pipeline > 1
    return {
        "tensor_model_parallel_size": parallel.tensor,
        "sequence_parallel": parallel.splits_sequence,
        "pipeline_model_parallel_size": parallel.pipeline,
        "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline if interleaved else None,
        "context_parallel_size": parallel.context,
        **({"cp_comm_type": "a2a"} if parallel.context_comm == "a2a" else {}),
        "expert_model_parallel_size": parallel.expert,
        # The interleaved schedule with batched communication gives wrong gradients over two stages.
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
        "batch_p2p_sync": False,  # the host would wait for the GPU after each exchange, which old versions of torch needed
    }


def _experts(hf: HFModel, options: ModelOptions, on_gpu: bool) -> dict[str, Any]:
    coefficient = options.moe_aux_loss_coeff
    if coefficient is None:
        coefficient = hf.router_aux_loss_coef
    return {
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": on_gpu,
        "moe_permute_fusion": on_gpu,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "aux_loss" if coefficient else "none",
        "moe_aux_loss_coeff": coefficient,
        "moe_router_padding_for_quantization": options.fp8 is not None,
        "expert_tensor_parallel_size": 1,  # experts are split by number, not inside
    }


def _recompute(options: ModelOptions, experts: bool) -> dict[str, Any]:
    memory = options.memory
    if memory.recompute == "none":
        return {}
    if memory.recompute == "full":
        if memory.recompute_layers is None:
            return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
        return {
            "recompute_granularity": "full",
            "recompute_method": "block",
            "recompute_num_layers": memory.recompute_layers,
        }
    # Experts: see recompute_experts.
    return {} if experts else {"recompute_granularity": "selective", "recompute_modules": ["mlp"]}


def _fp8(options: ModelOptions) -> dict[str, Any]:
    if options.fp8 is None:
        return {}
    arguments: dict[str, Any] = {"fp8": "hybrid", "fp8_recipe": options.fp8}
    if options.fp8 == "delayed":
        arguments |= {"fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"}
    if options.fp8_bf16_layers:
        arguments |= {
            "first_last_layers_bf16": True,
            "num_layers_at_start_in_bf16": options.fp8_bf16_layers,
            "num_layers_at_end_in_bf16": options.fp8_bf16_layers,
        }
    return arguments
