"""Scan and Snap: how one layer of attention learns, in simulation and in theory.

One attention layer without positions predicts the next token of a synthetic language (`data`) whose
sequences are told apart by some tokens and not by others. `model` is the layer, `train` a whole
sweep of trainings in one program, `flow` the gradient flow on the true distribution, `theory` what
is predicted in closed form. `predictions` holds the one against the other, `tables` are those
behind the paper's figures, and `study` judges all of it, or writes one figure alone.

Source: Tian, Wang, Chen, Du, "Scan and Snap", NeurIPS 2023, arXiv 2305.16380.
"""
