"""Evaluation: metrics of audio, a protocol with ceiling and controls, reports, probes, memorization.

metrics, musicnn, basic_pitch   properties of a wave, and agreement with a reference
protocol, shards                held-out prompts and ways to produce clips; clips generated, measured, cached
estimates, scores, report       confidence intervals, rows with goals, tables and model card
labelled, probes                labelled pieces, and what the layers of the language model encode about them
embeddings, distances           networks that embed recordings; Fréchet distance and KAD of two sets
recordings, measure             metrics of any folder of recordings; the command line
memorization                    overlap with the training clips
"""
