"""The Megatron model of a Hugging Face config, on any rank of any layout."""

import dasd_megatron.cpu_backend  # noqa: F401 (prepares Megatron for this machine when it is first imported)
