"""One model -> weaker siblings of it, in an order that is measured: `deltalearn ladder`.

options   what is asked for, and the siblings that this means
layers    the layers of a model: found, passed by, left out; the config that goes with it
blur      weights in fewer bits, and with noise
texts     given texts as ids, and a model's log-likelihood of them
choose    which layers to leave out, by the least rise of loss
make      all of it in order: siblings as directories, read back, held against the model, measured
notes     README.md of each sibling, ladder.json, and the table
"""
