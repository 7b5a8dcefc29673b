"""What a completion is worth: functions from samples to numbers, and their weighted sum."""
