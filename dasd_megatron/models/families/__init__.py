"""Model families, one file each: what config.json means, and how Megatron's parameters are made of its tensors."""
