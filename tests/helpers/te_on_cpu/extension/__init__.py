"""`transformer_engine_torch`, the compiled extension, in plain torch: what each function means, computed in float32.

Memory that kernels leave unwritten is NaN, so that whoever reads it is seen. What isn't here raises NotImplementedError with its
name.
"""
