"""Rotary positions (Su et al., 2021) that may restart in a sample; megatron-core's cannot, and need CUDA."""

from __future__ import annotations

from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor, nn

from pretrain.config.model import GPTModelConfig


class RotaryAngles(nn.Module):
    """Angles by which megatron-core's attention turns the pairs (i, i + D/2) of each query and key."""

    def __init__(self, model: GPTModelConfig) -> None:
        super().__init__()
        frequencies = RotaryEmbedding(
            kv_channels=model.hidden_size // model.num_attention_heads,
            rotary_percent=1.0,
            rotary_base=model.rotary_base,
            rope_scaling=model.rope_scaling_factor is not None,
            rope_scaling_factor=model.rope_scaling_factor or 1.0,
            use_cpu_initialization=True,
        )
        # A plain attribute: as a buffer it would be cast to bf16 with the model, and blur positions.
        self.inverse_wavelengths: Tensor = frequencies.inv_freq

    def forward(self, positions: Tensor) -> Tensor:
        """Angles in fp32.

        Args:
            positions: [B, S] int, or [1, S] for all samples alike.

        Returns:
            [S, B, 1, D], each angle twice: for the two halves of a head.
        """
        self.inverse_wavelengths = self.inverse_wavelengths.to(positions.device)
        angles = positions.t().float()[..., None] * self.inverse_wavelengths  # [S, B, D / 2]
        both: Tensor = angles.repeat(1, 1, 2)
        return both[:, :, None, :]
