"""How good captions are, by the words they share with others': equal to the COCO caption evaluation tool on our words.

Sources: Vedantam et al. 2015 (arXiv:1411.5726) for CIDEr, Papineni et al. 2002 for BLEU, Lin 2004 for ROUGE-L. Where
the tool (pycocoevalcap) departs from the papers it is followed and the departure is named, so that figures can be
compared with published ones. METEOR is not here: the tool's own is a Java program, and no other one gives its figures.
"""
