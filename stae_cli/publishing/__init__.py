"""Publishing: latents as a dataset on the Hugging Face hub."""
