"""ZeroCap: captions by a language model that CLIP guides at inference, without any training.

Tewel et al., "ZeroCap: Zero-Shot Image-to-Text Generation for Visual-Semantic Arithmetic" (CVPR
2022, arXiv:2111.14447). For each word the keys and values of the words before it are moved by
gradient steps, so that the language model prefers what CLIP finds in the image.
"""
