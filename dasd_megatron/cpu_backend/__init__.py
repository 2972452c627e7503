"""What lets Megatron-Core run without CUDA, and the layers that take Transformer Engine's place there."""

from dasd_megatron.cpu_backend.import_hook import install_import_hook

install_import_hook()  # before any module of the packages that build on this one imports megatron
