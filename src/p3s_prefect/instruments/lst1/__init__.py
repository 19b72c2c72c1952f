"""The camera of LST-1, a Cherenkov telescope of 23 m on La Palma: real waveforms, their quality, and their replay.

``experiment.yaml`` declares the experiment. `subruns` is the file format that arrives, `sample` the fifty real events
that are replayed, `camera` where the pixels are; `pixels`, `displays` and `totals` hold the payloads.
"""
