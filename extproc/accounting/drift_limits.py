"""When a difference in the traffic is worth an alarm: for the metrics of a router, and for `extproc drift`."""

# With fewer conversations in the last day, nothing is compared.
LEAST_RECENT = 50
# The smallest difference: the chance that a recent value is above an earlier one, minus a half.
LEAST_RANK = 0.10
