"""Dual Diffusion (D-DiT): pictures from text, and text from pictures, by one network (arXiv 2501.00289).

`config`, `network`   the transformer with two heads
`words`, `t5`         a text as token numbers, and their states
`text_sampling`       masked text diffusion;  `picture_sampling`: the flow of a picture
`losses`              what both are trained with, and the score of a text
`pictures`            how a picture comes to the network
`weights`             published folders and single files;  `pipeline`: the whole way in one call
"""
