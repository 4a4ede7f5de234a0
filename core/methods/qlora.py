"""QLoRA (Dettmers et al. 2023, arXiv:2305.14314): LoRA beside a base model in NF4 with double quantisation.

What is learned, and how, is LoRA's. What makes it QLoRA is the base it is trained and served on, which its spec fixes:
4 bit. On disk it is a plain LORA folder.
"""

from core.methods.lora import Lora


class QLora(Lora):
    """Lora; only its spec differs."""
