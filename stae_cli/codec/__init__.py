"""The codec: the network's fast form on one device, images of any sizes to latents and back."""
