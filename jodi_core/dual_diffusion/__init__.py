"""Dual Diffusion (D-DiT): pictures from text, and text from pictures, by one network (arXiv 2501.00289).

`config`, `layers`, `network`   the transformer with two heads;  `start`: from Stable Diffusion 3
`roles`                         picture and text as domains
`words`, `t5`                   a text as token numbers, and their states
`text_sampling`, `writing`      masked text diffusion; texts for pictures, and their scores
`picture_sampling`              the flow of a picture
`losses`                        what both are trained with
`pictures`                      how a picture comes to the network
`weights`, `pipeline`           published folders and single files; the whole way in one call
"""
