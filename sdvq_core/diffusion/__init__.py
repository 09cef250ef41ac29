"""Base models of the SDXL family: finding, loading, sampling, decoding. The room that imports diffusers."""
