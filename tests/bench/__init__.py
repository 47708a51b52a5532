"""`make bench`: a whole night on real processes, as ratios of one run. Nothing of it is asserted as a time."""
