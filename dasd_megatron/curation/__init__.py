"""From sampled responses to packs of training documents. Needs no torch."""
