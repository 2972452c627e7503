"""Builds the Megatron model of a Hugging Face config, on any rank of any layout. The only place that constructs models."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from conversion.hf_model import HFModel
from dasd_megatron.recipe.preflight import check_layout
from dasd_megatron.recipe.schema import Parallel
from dasd_megatron.training.reference_layers import CHECKPOINT_KEYS, reference_block_spec


def transformer_config(hf: HFModel, parallel: Parallel, dtype: torch.dtype) -> TransformerConfig:
    """Megatron's config. Raises UserError when the model can't be split as `parallel` says."""
    shape = hf.shape
    check_layout(hf.config, hf.folder, parallel)
    return TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        ffn_hidden_size=hf.config["intermediate_size"],
        num_attention_heads=shape.heads,
        num_query_groups=shape.query_groups,
        kv_channels=shape.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=hf.config["rms_norm_eps"],
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        qk_layernorm=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        attention_softmax_in_fp32=True,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        # Loss and gradients are sums, divided by the tokens of the global batch: the token mean in every layout.
        calculate_per_token_loss=True,
        use_cpu_initialization=not torch.cuda.is_available(),
        perform_initialization=False,  # weights always come from a checkpoint
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
    )


def build_model(hf: HFModel, parallel: Parallel, dtype: torch.dtype, max_length: int) -> GPTModel:
    """This rank's part of the model, weights not yet loaded; on the last pipeline stage it returns logits."""
    config = transformer_config(hf, parallel, dtype)
    model = GPTModel(
        config,
        _block_spec(config),
        vocab_size=padded_vocabulary(hf.shape.vocabulary, parallel.tensor),
        max_sequence_length=max_length,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        position_embedding_type="rope",
        rotary_base=hf.rope_theta,
        share_embeddings_and_output_weights=hf.shape.tied,
    )
    return model.to(device=_device(), dtype=dtype)


def padded_vocabulary(vocabulary: int, tensor_parallel: int) -> int:
    """Rows of the embedding: the next multiple of the tensor-parallel size. Padded rows take no part in the loss."""
    return -(-vocabulary // tensor_parallel) * tensor_parallel


def named_weights(model: GPTModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Parameters by the names that checkpoints and conversion tables use."""
    for name, parameter in model.named_parameters():
        for own, checkpoint in CHECKPOINT_KEYS.items():
            name = name.replace(own, checkpoint)
        yield name, parameter


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _block_spec(config: TransformerConfig) -> object:
    if not torch.cuda.is_available():
        return reference_block_spec(config)
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

    return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=True)
